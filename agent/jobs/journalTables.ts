import * as z from 'zod';
import { changeTables } from './changeRows.ts';
import { jobKinds, type JobRow, jobStates, type StepRow } from './job.ts';
import type { JobOwner } from './owner.ts';
import { requestTables } from './requestRows.ts';
import { pauseColumns, pauseFrom, pauseTables } from './pauseRows.ts';
import { scheduleTables } from './scheduleRows.ts';

/** The tables of the first version. */
const jobTables = `
  CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    machine_uuid TEXT NOT NULL,
    machine_name TEXT NOT NULL,
    state TEXT NOT NULL,
    record TEXT NOT NULL,
    error TEXT,
    owner TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    holds_machine INTEGER NOT NULL DEFAULT 1,
    progress TEXT,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    finished_at_ms INTEGER
  ) STRICT;
  -- One job per machine, also between processes: the database itself refuses the second.
  CREATE UNIQUE INDEX one_job_per_machine ON jobs (machine_uuid) WHERE holds_machine = 1;
  CREATE TABLE steps (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    started_at_ms INTEGER NOT NULL,
    duration_ms REAL,
    PRIMARY KEY (job_id, seq)
  ) STRICT;
`;

/** What makes each version of the one before, from none on. */
export const migrations: readonly string[] = [
  jobTables,
  scheduleTables,
  requestTables,
  changeTables,
  pauseTables,
];

/** Version of the tables, kept in SQLite's `user_version`. */
export const schemaVersion = migrations.length;

/** Text of a column that holds JSON. */
const json = z.string().transform((text): unknown => JSON.parse(text));

/** A record that cannot be read is the fault of one job, which its own definition tells: it hides no other. */
const recordSchema = z.string().transform((text): unknown => {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) return text;
    throw error;
  }
});

const errorSchema = z.object({
  code: z.string(),
  message: z.string(),
  hint: z.string().optional(),
  retryable: z.boolean(),
});
const ownerSchema = z.object({ pid: z.number(), startTicks: z.number(), bootId: z.string() });

const rowSchema = pauseColumns.extend({
  id: z.string(),
  kind: z.enum(jobKinds),
  machine_uuid: z.string(),
  machine_name: z.string(),
  state: z.enum(jobStates),
  record: recordSchema,
  error: json.pipe(errorSchema).nullable(),
  owner: json.pipe(ownerSchema).nullable(),
  cancel_requested: z.number(),
  holds_machine: z.number(),
  created_at_ms: z.number(),
  updated_at_ms: z.number(),
  finished_at_ms: z.number().nullable(),
});

/** What `progress` holds. */
export const progressSchema = z.object({
  jobId: z.string(),
  state: z.enum(jobStates),
  step: z.string(),
  detail: z.string().optional(),
  doneBytes: z.number().optional(),
  totalBytes: z.number().optional(),
  bytesPerSecond: z.number().optional(),
  etaSeconds: z.number().optional(),
});

const stepSchema = z.object({
  name: z.string(),
  status: z.enum(['begun', 'done', 'failed']),
  started_at_ms: z.number(),
  duration_ms: z.number().nullable(),
});

/** A row of `jobs`. */
export function jobFrom(columns: unknown): JobRow {
  const row = rowSchema.parse(columns);
  return {
    id: row.id,
    kind: row.kind,
    machineUuid: row.machine_uuid,
    machineName: row.machine_name,
    state: row.state,
    record: row.record,
    error: row.error,
    owner: row.owner,
    cancelRequested: row.cancel_requested === 1,
    pause: pauseFrom(row),
    holdsMachine: row.holds_machine === 1,
    createdAtMs: row.created_at_ms,
    updatedAtMs: row.updated_at_ms,
    finishedAtMs: row.finished_at_ms,
  };
}

/** The owner in a row of `service`. */
export function ownerFrom(columns: unknown): JobOwner {
  return z.object({ owner: json.pipe(ownerSchema) }).parse(columns).owner;
}

/** The version of the program in a row of `service`. */
export function serviceVersionFrom(columns: unknown): string | undefined {
  const owner = json.pipe(z.object({ version: z.string().optional() }));
  return z.object({ owner }).parse(columns).owner.version;
}

/** A row of `steps`. */
export function stepFrom(columns: unknown): StepRow {
  const row = stepSchema.parse(columns);
  return { name: row.name, status: row.status, startedAtMs: row.started_at_ms, durationMs: row.duration_ms };
}
