import { decideSchedule, type ScheduleDecision } from '../../agent/schedule/decide.ts';
import {
  begun,
  ended,
  newState,
  type RunOutcome,
  type RunWord,
  type ScheduleState,
  skipped,
} from '../../agent/schedule/runState.ts';
import { type Timetable, timetableOf } from '../../agent/schedule/timetable.ts';
import { ZoneClock } from '../../agent/schedule/zone.ts';
import { parseConfig } from '../../config/config.ts';
import { policyFor } from '../../config/policy.ts';
import type { ScheduleConfig } from '../../config/schema.ts';

const minuteMs = 60_000;
const zurich = new ZoneClock('Europe/Zurich');

/** What a configuration with this schedule says. */
function scheduleOf(text: string): ScheduleConfig {
  const file = `storages: { a: { kind: directory, path: /a } }\npolicies: { default: { schedule: ${text} } }`;
  const decision = policyFor(parseConfig(file, 'c.yaml').config, 'vm', 'c.yaml');
  if (decision.kind !== 'policy' || decision.policy.schedule === null) throw new Error('no schedule');
  return decision.policy.schedule;
}

/** The timetable that a policy with this schedule says; in Zürich unless told. */
export function timetable(text: string, options: { clock?: ZoneClock; seed?: string } = {}): Timetable {
  return timetableOf(scheduleOf(text), { clock: zurich, seed: 'vm-001', ...options });
}

/** The instant of a time in UTC, such as `2026-11-22T02:00`. */
export const ms = (time: string): number => Date.parse(`${time}Z`);
/** A time in UTC, to the minute. */
export const text = (instantMs: number): string => new Date(instantMs).toISOString().slice(0, 16);

/** One machine with a schedule; does what a service would do, with a clock that the test moves. */
export class ScheduledMachine {
  readonly table: Timetable;
  state: ScheduleState;
  nowMs: number;
  unfinished = false;
  /** All that was begun, and what its slot was. */
  readonly begun: {
    readonly atMs: number;
    readonly slotMs: number;
    readonly attempt: number;
    readonly why: string;
  }[] = [];
  readonly skipped: number[] = [];

  constructor(table: Timetable, time: string) {
    this.table = table;
    this.nowMs = ms(time);
    this.state = newState(table, this.nowMs);
  }

  /** Decides, and does what was decided; says what is to be waited for. */
  look(): Extract<ScheduleDecision, { kind: 'wait' | 'never' | 'ask' }> {
    for (let round = 0; round < 3; round += 1) {
      const { nowMs, unfinished } = this;
      const { state, decision } = decideSchedule(this.table, this.state, { nowMs, unfinished });
      this.state = state;
      if (decision.kind === 'begin') {
        this.state = begun(this.table, state, decision, nowMs);
        this.unfinished = true;
        const { slotMs, attempt, why } = decision;
        this.begun.push({ atMs: nowMs, slotMs, attempt, why });
      } else if (decision.kind === 'skip') {
        this.state = skipped(state, decision.slotMs, nowMs);
        this.skipped.push(decision.slotMs);
      } else return decision;
    }
    throw new Error('it decides the same again and again');
  }

  end(outcome: RunOutcome): RunWord | null {
    this.unfinished = false;
    const { state, word } = ended(this.table, this.state, outcome, this.nowMs);
    this.state = state;
    return word;
  }

  /** Sleeps as it is told until an instant; each run takes so long and ends so. */
  until(
    time: string,
    { takesMs = 10 * minuteMs, outcome = 'succeeded' }: { takesMs?: number; outcome?: RunOutcome } = {},
  ): this {
    const untilMs = ms(time);
    let endsMs = Number.POSITIVE_INFINITY;
    for (;;) {
      const before = this.begun.length;
      const decision = this.look();
      if (this.begun.length > before) endsMs = this.nowMs + takesMs;
      const waitMs = decision.kind === 'wait' ? decision.untilMs : Number.POSITIVE_INFINITY;
      if (waitMs <= this.nowMs)
        throw new Error(`it is told to wait for ${text(waitMs)} at ${text(this.nowMs)}`);
      const nextMs = Math.min(waitMs, endsMs);
      if (nextMs > untilMs) {
        this.nowMs = untilMs;
        return this;
      }
      this.nowMs = nextMs;
      if (nextMs === endsMs) {
        this.end(outcome);
        endsMs = Number.POSITIVE_INFINITY;
      }
    }
  }

  /** The host is off, or its clock is set: the next look is then. */
  at(time: string): this {
    this.nowMs = ms(time);
    this.look();
    return this;
  }

  begunAt(): readonly string[] {
    return this.begun.map(({ atMs }) => text(atMs));
  }
}
