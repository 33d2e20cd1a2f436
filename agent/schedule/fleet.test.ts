import t from 'tap';
import { parseConfig } from '../../config/config.ts';
import { policyFor } from '../../config/policy.ts';
import { decideSchedule } from './decide.ts';
import { DueQueue } from './queue.ts';
import { begun, ended, newState, type ScheduleState, skipped } from './runState.ts';
import { type Timetable, timetableOf } from './timetable.ts';
import { ZoneClock } from './zone.ts';

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;
const runMs = 5 * minuteMs;

const schedules = [
  '{ cron: "0 2 * * *", jitterSeconds: 14400, windows: ["22:00-08:00"] }',
  '{ every: 4h, jitterSeconds: 14400 }',
  '{ cron: "@hourly", jitterSeconds: 1800, blackouts: ["12:00-13:00"] }',
];

interface Machine {
  readonly table: Timetable;
  state: ScheduleState;
  unfinished: boolean;
  runs: number;
}

/** So many machines with the schedules from above, in turn, on a simulated clock. */
class Fleet {
  readonly machines = new Map<string, Machine>();
  readonly #queue = new DueQueue();
  readonly #ends = new DueQueue();
  nowMs: number;
  looks = 0;
  skips = 0;

  constructor(count: number, startMs: number) {
    this.nowMs = startMs;
    const clock = new ZoneClock('Europe/Zurich');
    const [policies, names] = [
      schedules.map((text, index) => `p${index}: { schedule: ${text} }`),
      schedules.keys(),
    ];
    const rules = [...names].map((index) => `{ match: "kind${index}-*", policy: p${index} }`);
    const { config } = parseConfig(
      `storages: { a: { kind: directory, path: /a } }\npolicies: { ${policies.join(', ')} }\nmachines: [${rules.join(', ')}]`,
      'c.yaml',
    );
    for (let index = 0; index < count; index += 1) {
      const id = `kind${index % schedules.length}-${index}`;
      const decision = policyFor(config, id, 'c.yaml');
      if (decision.kind !== 'policy' || decision.policy.schedule === null)
        throw new Error(`no schedule: ${id}`);
      const table = timetableOf(decision.policy.schedule, { clock, seed: id });
      this.machines.set(id, { table, state: newState(table, startMs), unfinished: false, runs: 0 });
      this.#queue.set(id, startMs);
    }
  }

  /** Lets the clock jump from one thing to do to the next. */
  until(endMs: number): void {
    for (;;) {
      const nextMs = Math.min(this.#queue.nextMs() ?? Infinity, this.#ends.nextMs() ?? Infinity);
      if (nextMs > endMs) break;
      this.nowMs = Math.max(this.nowMs, nextMs);
      for (const id of this.#ends.takeDue(this.nowMs)) this.#end(id);
      for (const id of this.#queue.takeDue(this.nowMs)) this.#look(id);
    }
    this.nowMs = endMs;
  }

  #end(id: string): void {
    const machine = this.machines.get(id);
    if (machine === undefined) return;
    machine.unfinished = false;
    machine.state = ended(machine.table, machine.state, 'succeeded', this.nowMs).state;
    this.#queue.set(id, this.nowMs);
  }

  #look(id: string): void {
    const machine = this.machines.get(id);
    if (machine === undefined) return;
    this.looks += 1;
    const { nowMs } = this;
    const { state, decision } = decideSchedule(machine.table, machine.state, {
      nowMs,
      unfinished: machine.unfinished,
    });
    machine.state = state;
    if (decision.kind === 'wait') this.#queue.set(id, decision.untilMs);
    if (decision.kind === 'skip') {
      machine.state = skipped(state, decision.slotMs, nowMs);
      this.skips += 1;
      this.#queue.set(id, nowMs);
    }
    if (decision.kind === 'begin') {
      machine.state = begun(machine.table, state, decision, nowMs);
      machine.unfinished = true;
      machine.runs += 1;
      this.#ends.set(id, nowMs + runMs);
    }
  }
}

void t.test(
  'ten thousand machines have each of their runs in a day, and are not looked at in between',
  (t) => {
    const count = 10_000;
    const startMs = Date.parse('2026-11-22T11:00Z');
    const before = process.cpuUsage();
    const fleet = new Fleet(count, startMs);
    const ready = process.cpuUsage(before);
    fleet.until(startMs + dayMs - 1);
    const done = process.cpuUsage(before);
    const runsOf = (kind: number): ReadonlySet<number> =>
      new Set(
        [...fleet.machines].filter(([id]) => id.startsWith(`kind${kind}-`)).map(([, { runs }]) => runs),
      );
    t.same(runsOf(0), new Set([1]), 'daily');
    t.same(runsOf(1), new Set([6]), 'every four hours');
    // One hour is a blackout: what is due in it begins at its end, and with it goes what is due soon after.
    t.ok(
      [...runsOf(2)].every((runs) => runs === 23 || runs === 24),
      'hourly',
    );
    t.equal(fleet.skips, 0);
    const runs = [...fleet.machines.values()].reduce((sum, machine) => sum + machine.runs, 0);
    t.ok(fleet.looks <= 2 * runs + count, `${fleet.looks} looks for ${runs} runs`);
    const seconds = (usage: NodeJS.CpuUsage): string => ((usage.user + usage.system) / 1e6).toFixed(2);
    t.comment(
      `${runs} runs of a day: ${seconds(done)} s of processor time, ${seconds(ready)} s of it to begin`,
    );
    t.end();
  },
);

void t.test('a day in which the clocks change has the runs of its hours', (t) => {
  for (const [start, hours] of [
    ['2026-03-28T23:00Z', 23],
    ['2026-10-24T22:00Z', 25],
  ] as const) {
    const fleet = new Fleet(3, Date.parse(start));
    fleet.until(Date.parse(start) + hours * hourMs - 1);
    const [daily, every, hourly] = fleet.machines.values();
    const everyRuns = Math.ceil((hours * hourMs - (every?.table.jitterMs ?? 0)) / (4 * hourMs));
    t.same([daily?.runs, every?.runs], [1, everyRuns], `${hours} hours`);
    // One of them can be within the blackout, and one after the end by its jitter.
    t.ok(
      (hourly?.runs ?? 0) >= hours - 2 && (hourly?.runs ?? 0) <= hours,
      `${hourly?.runs} in ${hours} hours`,
    );
  }
  t.end();
});
