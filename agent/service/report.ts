import type { Agent } from '../agent.ts';
import { decideSchedule } from '../schedule/decide.ts';
import { dueSince } from '../schedule/overdue.ts';
import { type ScheduledRun, type ScheduleState, skipped } from '../schedule/runState.ts';
import type { Timetable } from '../schedule/timetable.ts';
import { entryOf, type LastWord, stateOf } from './scheduleBook.ts';
import { type ScheduledMachine, Timetables } from './timetables.ts';

/** Machines whose timetables are remembered; all are forgotten when there are more. */
const machinesMax = 20_000;

/** How a machine stands to its schedule, for whoever asks. */
export interface ScheduleReport {
  /** When its next backup begins, as far as that can be known; not after now: it is due. null: never. */
  readonly nextMs: number | null;
  /** The newest run; null: there was none. */
  readonly run: (ScheduledRun & { readonly jobId: string | null }) | null;
  readonly lastWord: LastWord | null;
  /** Since when a backup is due that has not succeeded yet; null: none is. */
  readonly dueSinceMs: number | null;
}

/** Says how machines stand to their schedules, from the journal and the configuration; changes nothing. */
export class ScheduleReports {
  readonly #agent: Agent;
  readonly #timetables: Timetables;
  /** By UUID. To read a schedule takes longer than to go by it. */
  readonly #machines = new Map<
    string,
    { readonly name: string; readonly machine: ScheduledMachine | null }
  >();

  constructor(agent: Agent) {
    this.#agent = agent;
    this.#timetables = new Timetables(agent.parts);
  }

  /**
   * null for a machine that is backed up by command only.
   * @param lastSuccessMs instant of the machine's newest good backup; null: there is none
   * @throws ConfigError NO_STORAGE
   */
  of(
    about: { readonly uuid: string; readonly name: string },
    nowMs: number,
    lastSuccessMs: number | null,
  ): ScheduleReport | null {
    const machine = this.#machine(about);
    if (machine === null) return null;
    const { journal } = this.#agent.parts;
    const row = journal.schedule(machine.uuid);
    const entry = row === undefined ? undefined : entryOf(row);
    const state = stateOf(machine, entry?.state, row?.slots, nowMs);
    const unfinished = journal.holder(machine.uuid) !== undefined;
    const run = state.run === null ? null : { ...state.run, jobId: entry?.jobId ?? null };
    return {
      nextMs: nextOf(machine.table, state, { nowMs, unfinished }),
      run,
      lastWord: entry?.lastWord ?? null,
      dueSinceMs: dueSince(machine.table, state, { lastSuccessMs, nowMs }),
    };
  }

  #machine({ uuid, name }: { readonly uuid: string; readonly name: string }): ScheduledMachine | null {
    const known = this.#machines.get(uuid);
    if (known?.name === name) return known.machine;
    const machine = this.#timetables.of({ uuid, name });
    if (this.#machines.size >= machinesMax) this.#machines.clear();
    this.#machines.set(uuid, { name, machine });
    return machine;
  }
}

function nextOf(
  table: Timetable,
  before: ScheduleState,
  { nowMs, unfinished }: { readonly nowMs: number; readonly unfinished: boolean },
): number | null {
  const { state, decision } = decideSchedule(table, before, { nowMs, unfinished });
  if (decision.kind === 'wait') return decision.untilMs;
  if (decision.kind === 'never') return null;
  if (decision.kind === 'skip')
    return nextOf(table, skipped(state, decision.slotMs, nowMs), { nowMs, unfinished });
  return nowMs;
}
