import t from 'tap';
import { ms, ScheduledMachine, text, timetable } from '../../test/sim/scheduledMachine.ts';

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;

void t.test(
  'a clock that goes back does not run a slot twice, and a clock that goes on is one day’s run',
  (t) => {
    // Half an hour, ten hours: the slot has run.
    for (const back of ['2026-11-23T00:40', '2026-11-22T15:10']) {
      const machine = new ScheduledMachine(timetable('"0 2 * * *"'), '2026-11-21T12:00').until(
        '2026-11-23T01:15',
      );
      machine.at(back).until('2026-11-24T12:00');
      t.same(machine.begunAt(), ['2026-11-22T01:00', '2026-11-23T01:00', '2026-11-24T01:00'], back);
    }
    // A month ahead, and back again: what the wrong clock has run costs no day.
    const ahead = new ScheduledMachine(timetable('"0 2 * * *"'), '2026-11-22T12:00').at('2026-12-22T12:00');
    ahead.nowMs += minuteMs;
    ahead.end('succeeded');
    ahead.at('2026-11-22T12:10').until('2026-11-25T12:00');
    t.same(ahead.begunAt(), ['2026-12-22T12:00', '2026-11-23T01:00', '2026-11-24T01:00', '2026-11-25T01:00']);
    t.end();
  },
);

void t.test('after a small step back nothing that has run runs again', (t) => {
  const machine = new ScheduledMachine(timetable('"0 * * * *"'), '2026-11-22T09:30').until(
    '2026-11-22T12:15',
  );
  machine.at('2026-11-22T10:30').until('2026-11-22T14:30');
  t.same(
    machine.begunAt().map((time) => time.slice(11)),
    ['10:00', '11:00', '12:00', '13:00', '14:00'],
  );
  t.end();
});

void t.test('a host that starts in 1970 and then asks the time does nothing twice', (t) => {
  for (const schedule of ['"0 2 * * *"', '{ every: 4h }', '"0 * * * *"']) {
    const machine = new ScheduledMachine(timetable(schedule), '2026-11-22T00:30').until('2026-11-22T12:05');
    machine.unfinished = false;
    machine.end('succeeded');
    machine.look();
    const { length } = machine.begun;
    machine.at('1970-01-01T00:00:20').at('2026-11-22T12:15');
    t.equal(machine.begun.length, length, schedule);
    t.equal(machine.state.setBackToMs, null);
  }
  t.end();
});

void t.test('a clock that stays back keeps no backup from being made', (t) => {
  for (const [schedule, mostMs] of [
    ['"0 2 * * *"', dayMs + hourMs],
    ['{ every: 4h }', 4 * hourMs],
    ['"0 * * * *"', hourMs],
  ] as const) {
    const machine = new ScheduledMachine(timetable(schedule), '2026-11-22T00:30').until('2026-11-22T12:15');
    const { length } = machine.begun;
    machine.at('2026-10-01T10:30').until('2026-10-03T12:00');
    const [first] = machine.begun.slice(length);
    t.ok(first !== undefined && first.atMs - ms('2026-10-01T10:30') <= mostMs, schedule);
    const times = machine.begun.slice(length).map(({ atMs }) => atMs);
    t.ok(
      times.every((time, index) => time - (times[index - 1] ?? time) <= mostMs),
      `${schedule} goes on`,
    );
  }
  // A retry that was to come is not put off for a month either.
  const machine = new ScheduledMachine(timetable('"0 2 * * *"'), '2026-11-22T00:30').at('2026-11-22T01:00');
  machine.end('failed');
  t.match(machine.at('2026-10-01T10:30').look(), { why: 'retry', untilMs: ms('2026-10-01T10:35') });
  // Skipped slots of a clock that was set back are skipped once.
  const busy = new ScheduledMachine(timetable('"0 * * * *"'), '2026-11-22T00:30').until('2026-11-22T02:30');
  busy.unfinished = true;
  busy.at('2026-11-20T10:30').at('2026-11-20T11:00').at('2026-11-20T12:00').at('2026-11-20T13:00');
  t.same(busy.skipped.map(text), ['2026-11-20T11:00', '2026-11-20T12:00', '2026-11-20T13:00']);
  t.end();
});

void t.test('a run during which the clock is set back is tried again like any other', (t) => {
  const machine = new ScheduledMachine(timetable('"0 * * * *"'), '2026-11-22T01:30').at('2026-11-22T02:00');
  machine.at('2026-11-20T10:30');
  for (let hour = 11; hour < 16; hour += 1) machine.at(`2026-11-20T${hour}:00`);
  t.equal(machine.skipped.length, 5);
  machine.nowMs = ms('2026-11-20T15:10');
  t.match(machine.end('failed'), { kind: 'retry', atMs: ms('2026-11-20T15:15') });
  t.end();
});
