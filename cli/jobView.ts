import type { JobPause, JobRow } from '../agent/jobs/job.ts';
import type { Journal } from '../agent/jobs/journal.ts';
import { type StyledText, styled } from './output.ts';

/** What a job that still has its machine is waiting for. */
export type JobHold = 'running' | 'orphaned' | 'parked';

/** `null` for a job that has ended and left nothing. */
export function holdOf(journal: Journal, job: JobRow): JobHold | null {
  if (!job.holdsMachine) return null;
  if (job.owner === null) return 'parked';
  return journal.orphaned().some(({ id }) => id === job.id) ? 'orphaned' : 'running';
}

/** A job as `--json` prints it. */
export function jobJson(journal: Journal, job: JobRow): Readonly<Record<string, unknown>> {
  const hold = holdOf(journal, job);
  return {
    id: job.id,
    kind: job.kind,
    machine: { name: job.machineName, uuid: job.machineUuid },
    state: job.state,
    hold,
    cancelRequested: job.cancelRequested,
    pause: pauseJson(job.pause),
    error: job.error,
    createdAt: timeOf(job.createdAtMs),
    updatedAt: timeOf(job.updatedAtMs),
    finishedAt: job.finishedAtMs === null ? null : timeOf(job.finishedAtMs),
    progress: hold === 'running' ? (journal.progress(job.id) ?? null) : null,
  };
}

/** A pause as `--json` prints it. */
export function pauseJson(pause: JobPause | null): Readonly<Record<string, string | null>> | null {
  if (pause === null) return null;
  const { requestedAtMs, untilMs, sinceMs } = pause;
  return {
    requestedAt: timeOf(requestedAtMs),
    since: sinceMs === null ? null : timeOf(sinceMs),
    until: timeOf(untilMs),
  };
}

/** What has become of a pause. */
export function pauseText({ sinceMs }: JobPause): string {
  return sinceMs === null
    ? 'to be paused, as soon as what it is at has ended'
    : `paused since ${timeOf(sinceMs)}`;
}

/** RFC 3339 of milliseconds since 1970. */
export function timeOf(ms: number): string {
  return new Date(ms).toISOString();
}

/** State of a job, and what it waits for. */
export function stateText(job: JobRow, hold: JobHold | null): StyledText {
  const isPaused = hold === 'running' && job.pause?.sinceMs != null;
  const text = hold === null ? job.state : `${job.state} (${isPaused ? 'paused' : hold})`;
  if (isPaused) return styled('yellow', text);
  if (hold === 'running') return styled('bold', text);
  if (hold !== null) return styled('yellow', text);
  return styled(job.state === 'finished' ? 'green' : 'red', text);
}
