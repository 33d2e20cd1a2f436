import t from 'tap';
import { ms, text, timetable } from '../../test/sim/scheduledMachine.ts';
import { dueSince } from './overdue.ts';
import { newState } from './runState.ts';

const daily = timetable('{ cron: "0 2 * * *" }');
const began = { slotMs: ms('2026-11-20T01:00'), attempt: 1, startedMs: ms('2026-11-20T01:00') };
const failed = { ...began, endedMs: ms('2026-11-20T01:10'), retryDelayMs: null, stopped: false };

/** In Zürich, where 02:00 is 01:00 UTC in November. */
function since(
  now: string,
  lastSuccess: string | null,
  state = { run: failed, handledThroughMs: 0 },
): string | null {
  const lastSuccessMs = lastSuccess === null ? null : ms(lastSuccess);
  const found = dueSince(daily, state, { lastSuccessMs, nowMs: ms(now) });
  return found === null ? null : text(found);
}

void t.test(
  'a machine waits since the first slot after its newest good backup, however many runs have failed',
  (t) => {
    t.equal(since('2026-11-20T00:59', '2026-11-19T01:05'), null, 'nothing is due yet');
    t.equal(since('2026-11-20T01:00', '2026-11-19T01:05'), '2026-11-20T01:00');
    t.equal(since('2026-11-24T12:00', '2026-11-19T01:05'), '2026-11-20T01:00', 'it does not move on');
    t.equal(
      since('2026-11-20T12:00', '2026-11-20T11:00'),
      null,
      'a backup by hand serves the slot before it',
    );
    t.end();
  },
);

void t.test('a machine that never had a backup waits since the slot of its newest run', (t) => {
  t.equal(since('2026-11-20T12:00', null), '2026-11-20T01:00');
  t.end();
});

void t.test('a schedule that is new has missed nothing', (t) => {
  const nowMs = ms('2026-11-20T12:00');
  const state = newState(daily, nowMs);
  t.equal(dueSince(daily, state, { lastSuccessMs: null, nowMs }), null);
  t.equal(dueSince(daily, state, { lastSuccessMs: ms('2025-01-01T00:00'), nowMs }), null);
  const next = ms('2026-11-21T01:00');
  t.equal(dueSince(daily, state, { lastSuccessMs: null, nowMs: next }), next);
  t.end();
});

void t.test('outside of its windows nothing is due', (t) => {
  const table = timetable('{ cron: "0 2 * * *", windows: ["22:00-23:00"] }');
  const about = { lastSuccessMs: ms('2026-11-19T21:05') };
  const state = { run: failed, handledThroughMs: 0 };
  t.equal(dueSince(table, state, { ...about, nowMs: ms('2026-11-20T12:00') }), null);
  t.equal(dueSince(table, state, { ...about, nowMs: ms('2026-11-21T12:00') }), ms('2026-11-20T21:00'));
  t.end();
});
