import * as z from 'zod';
import type { ErrorRecord } from '../../common/errors.ts';
import type { Journal } from '../jobs/journal.ts';
import type { ScheduleRow } from '../jobs/scheduleRows.ts';
import { newState, type ScheduleState, underNewTimetable } from '../schedule/runState.ts';
import type { ScheduledMachine } from './timetables.ts';

/** What was said last about a run or a slot of a machine. */
export interface LastWord {
  /** `retry`: it failed, and is tried again. `gave-up`: it failed, and is not. */
  readonly kind: 'succeeded' | 'cancelled' | 'retry' | 'gave-up' | 'skipped';
  readonly slotMs: number;
  readonly atMs: number;
  readonly jobId: string | null;
  readonly error: ErrorRecord | null;
}

/** What is remembered about the schedule of one machine. */
export interface ScheduleEntry {
  readonly state: ScheduleState;
  /** The job of the newest run; null: it could not be created. */
  readonly jobId: string | null;
  readonly lastWord: LastWord | null;
}

const stateSchema = z.object({
  handledThroughMs: z.number(),
  run: z
    .object({
      slotMs: z.number(),
      attempt: z.number(),
      startedMs: z.number(),
      endedMs: z.number().nullable(),
      retryDelayMs: z.number().nullable(),
      // Rows of versions that knew no stop have none.
      stopped: z.boolean().default(false),
    })
    .nullable(),
  setBackToMs: z.number().nullable(),
});

const wordSchema = z
  .object({
    kind: z.enum(['succeeded', 'cancelled', 'retry', 'gave-up', 'skipped']),
    slotMs: z.number(),
    atMs: z.number(),
    jobId: z.string().nullable(),
    error: z
      .object({
        code: z.string(),
        message: z.string(),
        hint: z.string().optional(),
        retryable: z.boolean(),
      })
      .nullable(),
  })
  .nullable();

const dayMs = 86_400_000;
/** A machine that has been away for longer begins anew when it comes back. */
const rememberedMs = 30 * dayMs;

/**
 * What a row of the journal says; `undefined` for one that this version cannot read.
 */
export function entryOf({ state, jobId, lastWord }: ScheduleRow): ScheduleEntry | undefined {
  const known = stateSchema.safeParse(state).data;
  if (known === undefined) return undefined;
  return { state: known, jobId, lastWord: wordSchema.safeParse(lastWord).data ?? null };
}

/** What is remembered durably about the schedules of machines, in the journal. */
export class ScheduleBook {
  readonly #journal: Journal;

  constructor(journal: Journal) {
    this.#journal = journal;
  }

  /** `undefined` for a machine that `take` has not seen. */
  entry(machine: ScheduledMachine): ScheduleEntry | undefined {
    const row = this.#journal.schedule(machine.uuid);
    return row === undefined ? undefined : entryOf(row);
  }

  /** @throws JobError JOURNAL_UNUSABLE */
  write(machine: ScheduledMachine, entry: ScheduleEntry, nowMs: number): void {
    this.#journal.writeSchedules([{ ...this.row(machine, entry, nowMs), jobId: entry.jobId }]);
  }

  /** What `write` would write, but for the job: to be written with the job itself. */
  row(
    machine: ScheduledMachine,
    { state, lastWord }: Pick<ScheduleEntry, 'state' | 'lastWord'>,
    nowMs: number,
  ): Omit<ScheduleRow, 'jobId'> {
    const { uuid: machineUuid, name: machineName, slots } = machine;
    return { machineUuid, machineName, slots, state, lastWord, seenAtMs: nowMs };
  }

  /**
   * Takes note of the machines that are on this host: those with a new schedule get their state, and what is known of
   * others goes where their policy has no schedule any more, or when they have been away for long.
   * @param present UUIDs of all machines of the host
   * @throws JobError JOURNAL_UNUSABLE
   */
  take(scheduled: readonly ScheduledMachine[], present: ReadonlySet<string>, nowMs: number): void {
    const rows = new Map(this.#journal.schedules().map((row) => [row.machineUuid, row]));
    const changed: ScheduleRow[] = [];
    for (const machine of scheduled) {
      const row = rows.get(machine.uuid);
      rows.delete(machine.uuid);
      const known = row === undefined ? undefined : entryOf(row);
      const isAsBefore = row?.slots === machine.slots && row.machineName === machine.name;
      if (known !== undefined && isAsBefore && Math.abs(nowMs - row.seenAtMs) < dayMs) continue;
      const entry = known ?? { jobId: null, lastWord: null };
      const state = stateOf(machine, known?.state, row?.slots, nowMs);
      changed.push({ ...this.row(machine, { ...entry, state }, nowMs), jobId: entry.jobId });
    }
    if (changed.length > 0) this.#journal.writeSchedules(changed);
    const over = [...rows.values()].filter(
      ({ machineUuid, seenAtMs }) => present.has(machineUuid) || Math.abs(nowMs - seenAtMs) > rememberedMs,
    );
    if (over.length > 0) this.#journal.forgetSchedules(over.map(({ machineUuid }) => machineUuid));
  }
}

/** The state of a machine under its present timetable. */
export function stateOf(
  { table, slots }: ScheduledMachine,
  known: ScheduleState | undefined,
  knownSlots: string | undefined,
  nowMs: number,
): ScheduleState {
  if (known === undefined) return newState(table, nowMs);
  return slots === knownSlots ? known : underNewTimetable(table, known, nowMs);
}
