import * as fc from 'fast-check';
import t from 'tap';
import { ms, ScheduledMachine, text, timetable } from '../../test/sim/scheduledMachine.ts';
import { decideSchedule } from './decide.ts';
import { type RunWord, underNewTimetable } from './runState.ts';
import { newestDueSlot } from './timetable.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed}`);

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;

void t.test('a slot is run when it comes, once, and the next one is waited for', (t) => {
  const machine = new ScheduledMachine(timetable('"0 2 * * *"'), '2026-11-22T12:00:00');
  t.same(machine.look(), { kind: 'wait', untilMs: ms('2026-11-23T01:00'), why: 'not-due' });
  machine.until('2026-11-25T12:00');
  t.same(machine.begunAt(), ['2026-11-23T01:00', '2026-11-24T01:00', '2026-11-25T01:00']);
  t.same(new Set(machine.begun.map(({ why, attempt }) => `${why} ${attempt}`)), new Set(['on-time 1']));
  t.end();
});

void t.test('what was missed is made up for once, however much it was, and goes on as before', (t) => {
  for (const cron of ['0 2 * * *', '* * * * *', '0 */6 * * *']) {
    const machine = new ScheduledMachine(timetable(JSON.stringify(cron)), '2026-11-01T12:00:30');
    machine.at('2026-11-22T12:00:20');
    t.match(machine.begun, [{ attempt: 1, why: cron === '* * * * *' ? 'on-time' : 'missed' }], cron);
    t.equal(machine.end('succeeded')?.kind, 'succeeded');
    const decision = machine.look();
    t.ok(decision.kind === 'wait' && decision.untilMs > machine.nowMs, 'the next slot is one to come');
    t.equal(machine.begun.length, 1);
  }
  t.end();
});

void t.test(
  'a slot that comes while the machine has unfinished work is skipped, told, and not made up for',
  (t) => {
    const machine = new ScheduledMachine(timetable('"0 * * * *"'), '2026-11-22T11:30');
    machine.until('2026-11-22T16:30', { takesMs: 2.5 * hourMs });
    t.same(machine.begunAt(), ['2026-11-22T12:00', '2026-11-22T15:00']);
    t.same(machine.skipped.map(text), ['2026-11-22T13:00', '2026-11-22T14:00', '2026-11-22T16:00']);
    // Work that somebody else began counts as well.
    const other = new ScheduledMachine(timetable('"0 * * * *"'), '2026-11-22T11:30');
    other.unfinished = true;
    other.at('2026-11-22T12:00');
    t.same([other.begun.length, other.skipped.map(text)], [0, ['2026-11-22T12:00']]);
    t.end();
  },
);

void t.test(
  'slots that pass while the host is off are missed, not skipped, also in the middle of a run',
  (t) => {
    const machine = new ScheduledMachine(timetable('"0 2 * * *"'), '2026-11-20T12:00');
    machine.at('2026-11-21T01:00');
    // The host dies, and is back two days later; recovery takes its time and completes the backup.
    machine.nowMs = ms('2026-11-23T08:00');
    t.equal(machine.end('succeeded')?.kind, 'succeeded');
    machine.look();
    t.match(machine.begun.at(-1), { slotMs: ms('2026-11-23T01:00'), why: 'missed' });
    t.end();
  },
);

void t.test('a run whose end nobody has told of is asked about, and nothing begins before', (t) => {
  const machine = new ScheduledMachine(timetable('"0 2 * * *"'), '2026-11-20T12:00').at('2026-11-21T01:00');
  machine.unfinished = false;
  t.same(machine.look(), { kind: 'ask' });
  t.same(machine.end('failed'), { kind: 'retry', atMs: ms('2026-11-21T01:05'), attempt: 2 });
  t.equal(machine.end('failed'), null, 'told twice, it counts once');
  t.end();
});

void t.test('a failed run is tried again, later each time, and then there is a last word', (t) => {
  const machine = new ScheduledMachine(
    timetable(
      '{ cron: "0 2 * * *", retries: { count: 4, firstDelaySeconds: 60, factor: 10, maxDelaySeconds: 3600 } }',
    ),
    '2026-11-22T12:00',
  );
  machine.at('2026-11-23T01:00');
  const words: (RunWord | null)[] = [];
  for (let attempt = 1; attempt <= 5; attempt += 1) {
    machine.nowMs += minuteMs;
    words.push(machine.end('failed'));
    const decision = machine.look();
    if (decision.kind === 'wait') machine.nowMs = decision.untilMs;
    machine.look();
  }
  t.match(words, [
    { kind: 'retry', attempt: 2, atMs: ms('2026-11-23T01:02') },
    { kind: 'retry', attempt: 3, atMs: ms('2026-11-23T01:13') },
    { kind: 'retry', attempt: 4, atMs: ms('2026-11-23T02:14') },
    { kind: 'retry', attempt: 5, atMs: ms('2026-11-23T03:15') },
    { kind: 'gave-up', attempts: 5, why: 'no-retries-left', nextMs: ms('2026-11-24T01:00') },
  ]);
  t.same(
    machine.begun.map(({ slotMs, attempt, why }) => [text(slotMs), attempt, why]),
    [
      ['2026-11-23T01:00', 1, 'on-time'],
      ['2026-11-23T01:00', 2, 'retry'],
      ['2026-11-23T01:00', 3, 'retry'],
      ['2026-11-23T01:00', 4, 'retry'],
      ['2026-11-23T01:00', 5, 'retry'],
      ['2026-11-24T01:00', 1, 'on-time'],
    ],
  );
  t.end();
});

void t.test('what a stop of the service has ended is due again at once, and counts as no attempt', (t) => {
  const retries = 'retries: { count: 0 }';
  const machine = new ScheduledMachine(timetable(`{ cron: "0 2 * * *", ${retries} }`), '2026-11-22T12:00');
  machine.at('2026-11-23T01:00');
  for (const stops of ['2026-11-23T01:10', '2026-11-23T01:20']) {
    machine.nowMs = ms(stops);
    t.same(machine.end('stopped'), { kind: 'retry', atMs: ms(stops), attempt: 1 });
    machine.look();
    t.match(machine.begun.at(-1), { slotMs: ms('2026-11-23T01:00'), attempt: 1, why: 'retry' });
  }
  t.match(machine.end('failed'), { kind: 'gave-up', attempts: 1, why: 'no-retries-left' });
  machine.at('2026-11-24T01:00');
  t.match(machine.begun.at(-1), { slotMs: ms('2026-11-24T01:00'), attempt: 1, why: 'on-time' });
  t.equal(machine.begun.length, 4);
  t.end();
});

void t.test(
  'a slot that was skipped meanwhile stays skipped when a run that was stopped is done again',
  (t) => {
    const machine = new ScheduledMachine(timetable('"0 * * * *"'), '2026-11-22T11:30').at('2026-11-22T12:00');
    machine.at('2026-11-22T13:00');
    t.same(machine.skipped, [ms('2026-11-22T13:00')]);
    machine.at('2026-11-22T13:10');
    machine.end('stopped');
    machine.look();
    t.match(machine.begun.at(-1), { slotMs: ms('2026-11-22T12:00'), why: 'retry' });
    machine.end('succeeded');
    t.match(machine.look(), { kind: 'wait', untilMs: ms('2026-11-22T14:00') });
    t.equal(machine.begun.length, 2);
    t.end();
  },
);

void t.test('a retry gives way to the next slot, which has its own attempts', (t) => {
  const retries = 'retries: { count: 5, firstDelaySeconds: 1800, factor: 1 }';
  const machine = new ScheduledMachine(timetable(`{ cron: "0 * * * *", ${retries} }`), '2026-11-22T11:30');
  machine.at('2026-11-22T12:00');
  machine.nowMs = ms('2026-11-22T12:10');
  t.match(machine.end('failed'), { kind: 'retry', atMs: ms('2026-11-22T12:40') });
  machine.at('2026-11-22T12:40');
  machine.nowMs = ms('2026-11-22T12:45');
  t.same(machine.end('failed'), {
    kind: 'gave-up',
    attempts: 2,
    why: 'next-run-comes-first',
    nextMs: ms('2026-11-22T13:00'),
  });
  machine.at('2026-11-22T13:00');
  t.match(machine.begun.at(-1), { attempt: 1, slotMs: ms('2026-11-22T13:00') });
  t.match(machine.end('failed-for-good'), { kind: 'gave-up', why: 'retrying-cannot-help', attempts: 1 });
  machine.at('2026-11-22T14:00');
  t.match(machine.end('cancelled'), { kind: 'cancelled' });
  t.equal(machine.look().kind, 'wait');
  t.equal(machine.begun.length, 4);
  t.end();
});

void t.test('a retry waits for other work of the machine, and one of long ago is made up for', (t) => {
  const machine = new ScheduledMachine(timetable('"0 2 * * *"'), '2026-11-22T12:00').at('2026-11-23T01:00');
  machine.end('failed');
  machine.unfinished = true;
  machine.at('2026-11-23T01:05');
  t.match(machine.look(), { kind: 'wait', why: 'unfinished', untilMs: ms('2026-11-24T01:00') });
  machine.unfinished = false;
  machine.at('2026-11-23T06:00');
  t.match(machine.begun.at(-1), { why: 'retry', attempt: 2, atMs: ms('2026-11-23T06:00') });
  t.end();
});

void t.test('what is due waits for a window, and for the end of a blackout; retries too', (t) => {
  const when = 'windows: ["22:00-04:00"], blackouts: ["2026-11-24"]';
  const machine = new ScheduledMachine(timetable(`{ cron: "0 12 * * *", ${when} }`), '2026-11-22T08:00');
  t.match(machine.look(), { kind: 'wait', untilMs: ms('2026-11-22T21:00'), why: 'not-due' });
  machine.nowMs = ms('2026-11-22T12:00');
  t.match(machine.look(), { kind: 'wait', untilMs: ms('2026-11-22T21:00'), why: 'outside-windows' });
  machine.until('2026-11-26T12:00');
  t.same(machine.begunAt(), ['2026-11-22T21:00', '2026-11-23T21:00', '2026-11-24T23:00', '2026-11-25T21:00']);
  t.same(new Set(machine.begun.map(({ why }) => why)), new Set(['on-time']));
  t.equal(machine.begun[2]?.slotMs, ms('2026-11-24T11:00'));
  const late = new ScheduledMachine(timetable(`{ cron: "55 3 * * *", ${when} }`), '2026-11-22T12:00').at(
    '2026-11-23T02:55',
  );
  t.match(late.end('failed'), { kind: 'retry', atMs: ms('2026-11-23T21:00') }, 'the window is over');
  const never = new ScheduledMachine(
    timetable('{ cron: "@daily", windows: ["01:00-02:00"], blackouts: ["00:00-12:00"] }'),
    '2026-11-22T12:00',
  );
  t.same(never.look(), { kind: 'never' });
  t.same(never.at('2026-12-22T12:00').look(), { kind: 'never' });
  t.end();
});

void t.test('every is so long after the last one began, and the first begins at once', (t) => {
  const machine = new ScheduledMachine(timetable('{ every: 4h }'), '2026-11-22T12:10');
  machine.until('2026-11-23T00:30', { takesMs: hourMs });
  t.same(machine.begunAt(), ['2026-11-22T12:10', '2026-11-22T16:10', '2026-11-22T20:10', '2026-11-23T00:10']);
  machine.end('succeeded');
  machine.at('2026-11-25T01:00');
  machine.end('succeeded');
  t.match(machine.look(), { untilMs: ms('2026-11-25T05:00') }, 'once, and from there');
  // Across the change of the clocks four hours are four hours.
  const spring = new ScheduledMachine(timetable('{ every: 4h }'), '2026-03-28T22:00').until(
    '2026-03-29T08:30',
  );
  t.same(spring.begunAt(), ['2026-03-28T22:00', '2026-03-29T02:00', '2026-03-29T06:00']);
  const long = new ScheduledMachine(timetable('{ every: 1h }'), '2026-11-22T12:00');
  long.until('2026-11-22T16:30', { takesMs: 2.5 * hourMs });
  t.same(long.begunAt(), ['2026-11-22T12:00', '2026-11-22T15:00'], 'what is skipped keeps the rhythm');
  t.end();
});

void t.test('jitter is the same for a machine each time, and spreads many evenly', (t) => {
  const shares = Array.from({ length: 2000 }, (_, index) =>
    timetable('{ cron: "0 2 * * *", jitterSeconds: 1000 }', { seed: `machine ${index}` }),
  ).map(({ jitterMs }) => jitterMs);
  for (let tenth = 0; tenth < 10; tenth += 1) {
    const count = shares.filter((share) => Math.floor(share / 100_000) === tenth).length;
    t.ok(count > 140 && count < 260, `${count} of 2000 in a tenth`);
  }
  const machine = new ScheduledMachine(
    timetable('{ cron: "0 2 * * *", jitterSeconds: 1000 }'),
    '2026-11-22T00:00',
  );
  machine.until('2026-11-25T12:00');
  const delays = machine.begun.map(({ atMs, slotMs }) => atMs - slotMs);
  t.equal(delays.length, 4);
  t.same(new Set(delays), new Set([machine.table.jitterMs]));
  const every = new ScheduledMachine(timetable('{ every: 1h, jitterSeconds: 86400 }'), '2026-11-22T00:00');
  every.until('2026-11-22T12:00');
  t.ok((every.begun[0]?.atMs ?? 0) < ms('2026-11-22T01:00'), 'no later than a whole interval');
  t.same(
    new Set(every.begun.slice(1).map(({ atMs }, index) => atMs - (every.begun[index]?.atMs ?? 0))),
    new Set([hourMs]),
  );
  // More jitter than there is between two slots.
  const much = new ScheduledMachine(
    timetable('{ cron: "*/10 * * * *", jitterSeconds: 7200 }'),
    '2026-11-22T00:00',
  );
  much.until('2026-11-22T12:00', { takesMs: minuteMs });
  t.ok(much.begun.length > 50 && new Set(much.begun.map(({ slotMs }) => slotMs)).size === much.begun.length);
  t.end();
});

void t.test('a new schedule does not make up for what it would have done', (t) => {
  const machine = new ScheduledMachine(timetable('"0 2 * * *"'), '2026-11-22T00:30').until(
    '2026-11-22T12:15',
  );
  const hourly = timetable('"0 * * * *"');
  const { length } = machine.begun;
  const changed = underNewTimetable(hourly, machine.state, machine.nowMs);
  t.match(decideSchedule(hourly, changed, { nowMs: machine.nowMs, unfinished: false }).decision, {
    kind: 'wait',
    untilMs: ms('2026-11-22T13:00'),
  });
  t.equal(length, 1);
  const every = timetable('{ every: 4h }');
  t.match(
    decideSchedule(every, underNewTimetable(every, machine.state, machine.nowMs), {
      nowMs: machine.nowMs,
      unfinished: false,
    }).decision,
    { kind: 'begin', why: 'missed' },
    'with every, what counts is the last one',
  );
  t.end();
});

void t.test(
  'whatever the host goes through, each slot is run at most once, and the newest is always answered for',
  (t) => {
    const anySchedule = fc.constantFrom(
      '"0 2 * * *"',
      '"30 2 * * *"',
      '"*/20 1-3 * * *"',
      '"0 * * * *"',
      '{ cron: "15 */3 * * *", jitterSeconds: 3600 }',
      '{ every: 5h }',
      '{ cron: "@daily", windows: ["01:00-05:00"], blackouts: ["sun 00:00-03:00"] }',
      '{ cron: "0 */2 * * *", retries: { count: 3, firstDelaySeconds: 600 } }',
    );
    const anyEvent = fc.record({
      // Time that goes by with the host on (0) or off, or only until just now.
      kind: fc.constantFrom('on', 'on', 'on', 'off', 'finish', 'fail', 'look'),
      minutes: fc.integer({ min: 1, max: 40 * 60 }),
    });
    const property = fc.property(
      anySchedule,
      fc.constantFrom('2026-03-28T10:00', '2026-10-24T10:00', '2026-11-22T10:00'),
      fc.array(anyEvent, { maxLength: 30 }),
      (schedule, start, events) => {
        const machine = new ScheduledMachine(timetable(schedule), start);
        for (const { kind, minutes } of events) {
          if (kind === 'finish' || kind === 'fail') machine.end(kind === 'fail' ? 'failed' : 'succeeded');
          else if (kind === 'off') machine.nowMs += minutes * minuteMs;
          else if (kind === 'on')
            machine.until(new Date(machine.nowMs + minutes * minuteMs).toISOString().slice(0, 19), {
              takesMs: minutes * 10_000,
              outcome: minutes % 3 === 0 ? 'failed' : 'succeeded',
            });
          const decision = machine.look();
          const { handledThroughMs } = machine.state;
          const open = newestDueSlot(machine.table, handledThroughMs, machine.nowMs);
          // Nothing that is due is left lying, but for windows.
          if (
            open !== null &&
            !(decision.kind === 'wait' && decision.why !== 'not-due') &&
            decision.kind !== 'ask'
          )
            return false;
        }
        const firsts = machine.begun.filter(({ attempt }) => attempt === 1).map(({ slotMs }) => slotMs);
        const all = [...firsts, ...machine.skipped];
        const inOrder = firsts.every((slotMs, index) => slotMs > (firsts[index - 1] ?? 0));
        return (
          new Set(all).size === all.length &&
          inOrder &&
          machine.begun.every(({ atMs, slotMs }) => atMs >= slotMs)
        );
      },
    );
    fc.assert(property, { seed, numRuns: 400 });
    t.end();
  },
);
