import type { ErrorRecord } from '../../common/errors.ts';
import type { JobOwner } from './owner.ts';

export const jobKinds = ['backup', 'restore', 'verify', 'replicate'] as const;
export type JobKind = (typeof jobKinds)[number];

/** States of a backup job, in order; the words are the heritage's (SC-01). */
export const backupStates = [
  'initialized',
  'snapshotting',
  'snapshotted',
  'merging',
  'merged',
  'retaining',
  'retained',
  'finished',
] as const;

/** States of a restore job, in order (SC-18). */
export const restoreStates = ['planned', 'confirmed', 'restoring', 'restored', 'finished'] as const;

export const jobStates = [...new Set([...backupStates, ...restoreStates, 'failed', 'cancelled'] as const)];
export type JobState = (typeof jobStates)[number];

/** One durable stage of a job, as the journal has it. */
export interface StepRow {
  readonly name: string;
  readonly status: 'begun' | 'done' | 'failed';
  readonly startedAtMs: number;
  readonly durationMs: number | null;
}

/** Somebody wants a job to be paused. Times are milliseconds since 1970. */
export interface JobPause {
  readonly requestedAtMs: number;
  /** From then on the job goes on by itself. */
  readonly untilMs: number;
  /** Since when it moves no data; `null` while it is at something that is brought to its end first. */
  readonly sinceMs: number | null;
}

/** Which jobs are listed. */
export interface JobListing {
  /** Only those of this machine, by name or UUID. */
  readonly machine?: string | undefined;
  /** Only those that are older than the job of this id. */
  readonly before?: string | undefined;
  /** So many at the most; 1000 unless told, -1 for all of them. */
  readonly limit?: number | undefined;
}

/** A job as the journal has it. `record` is the job kind's own document of facts. */
export interface JobRow {
  readonly id: string;
  readonly kind: JobKind;
  readonly machineUuid: string;
  readonly machineName: string;
  readonly state: JobState;
  readonly record: unknown;
  readonly error: ErrorRecord | null;
  readonly owner: JobOwner | null;
  readonly cancelRequested: boolean;
  readonly pause: JobPause | null;
  /**
   * The machine is not available for another job: this one runs, waits to be recovered, or was given up
   * with work left that `retry` or `cancel` must end.
   */
  readonly holdsMachine: boolean;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
  readonly finishedAtMs: number | null;
}

/** The machine that a job is about. Copies hold no machine, but a place of their own in the journal: UUID@STORAGE. */
export function machineOf({ machineUuid, machineName }: Pick<JobRow, 'machineUuid' | 'machineName'>): {
  readonly uuid: string;
  readonly name: string;
} {
  return { uuid: machineUuid.split('@')[0] ?? machineUuid, name: machineName };
}

/** What a watcher sees of a running job. */
export interface JobProgress {
  readonly jobId: string;
  readonly state: JobState;
  readonly step: string;
  readonly detail?: string | undefined;
  readonly doneBytes?: number | undefined;
  readonly totalBytes?: number | undefined;
  readonly bytesPerSecond?: number | undefined;
  readonly etaSeconds?: number | undefined;
}
