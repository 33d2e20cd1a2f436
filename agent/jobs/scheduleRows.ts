import type { DatabaseSync } from 'node:sqlite';
import * as z from 'zod';
import { linkRequest, type RequestPart } from './requestRows.ts';

/** What the journal keeps about the schedule of one machine; nothing of it means anything to the journal. */
export interface ScheduleRow {
  readonly machineUuid: string;
  readonly machineName: string;
  /** Which slots there are; when it changes, what is remembered is about other ones. */
  readonly slots: string;
  /** The schedule's own document. */
  readonly state: unknown;
  /** The newest job that was begun for it; null: none yet, or it could not be created. */
  readonly jobId: string | null;
  /** What was said last of a run or a slot. */
  readonly lastWord: unknown;
  /** When the machine was on this host, to within a day. */
  readonly seenAtMs: number;
}

/** How a new job stands to what asked for it; written in the transaction that creates the job. */
export interface ScheduledJob {
  /** The machine's schedule after this job has begun. */
  readonly schedule?: Omit<ScheduleRow, 'jobId'> | undefined;
  /** It takes the place of this job, also in the schedule that has begun that. */
  readonly insteadOf?: string | undefined;
  /** The piece of a request that it is for. */
  readonly request?: RequestPart | undefined;
}

/** Since version 2 of the journal. */
export const scheduleTables = `
  CREATE TABLE schedules (
    machine_uuid TEXT PRIMARY KEY,
    machine_name TEXT NOT NULL,
    slots TEXT NOT NULL,
    state TEXT NOT NULL,
    job_id TEXT,
    last_word TEXT NOT NULL,
    seen_at_ms INTEGER NOT NULL
  ) STRICT;
  -- The service that acts on the schedules: one process of a host.
  CREATE TABLE service (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    owner TEXT NOT NULL
  ) STRICT;
`;

const json = z.string().transform((text): unknown => JSON.parse(text));

const rowSchema = z.object({
  machine_uuid: z.string(),
  machine_name: z.string(),
  slots: z.string(),
  state: json,
  job_id: z.string().nullable(),
  last_word: json,
  seen_at_ms: z.number(),
});

/** A row of `schedules`. */
export function scheduleFrom(columns: unknown): ScheduleRow {
  const row = rowSchema.parse(columns);
  return {
    machineUuid: row.machine_uuid,
    machineName: row.machine_name,
    slots: row.slots,
    state: row.state,
    jobId: row.job_id,
    lastWord: row.last_word,
    seenAtMs: row.seen_at_ms,
  };
}

/** Puts a row in the place of the machine's one. */
export function putSchedule(db: DatabaseSync, row: ScheduleRow): void {
  db.prepare(
    `INSERT OR REPLACE INTO schedules (machine_uuid, machine_name, slots, state, job_id, last_word, seen_at_ms)
     VALUES (?, ?, ?, ?, ?, ?, ?)`,
  ).run(
    row.machineUuid,
    row.machineName,
    row.slots,
    JSON.stringify(row.state),
    row.jobId,
    JSON.stringify(row.lastWord),
    row.seenAtMs,
  );
}

/** Writes down, in the transaction that creates a job, what that means for what asked for it. */
export function linkSchedule(
  db: DatabaseSync,
  jobId: string,
  { schedule, insteadOf, request }: ScheduledJob,
): void {
  if (schedule !== undefined) putSchedule(db, { ...schedule, jobId });
  if (request !== undefined) linkRequest(db, jobId, request);
  if (insteadOf === undefined) return;
  db.prepare('UPDATE schedules SET job_id = ? WHERE job_id = ?').run(jobId, insteadOf);
  db.prepare('UPDATE jobs SET instead_of = ? WHERE id = ?').run(insteadOf, jobId);
}
