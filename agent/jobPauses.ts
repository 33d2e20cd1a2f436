import { setTimeout as sleep } from 'node:timers/promises';
import { JobError } from './jobs/errors.ts';
import type { JobRow } from './jobs/job.ts';
import type { Journal } from './jobs/journal.ts';
import { isOwnerAlive } from './jobs/owner.ts';

/** The owner of a job looks every half second what is wanted, and needs a moment to do it. */
const effectMaxMs = 2_000;
const lookMs = 50;

/**
 * Has a running job hold where it is: it reads nothing more and sends nothing more. One that is at something that must be
 * brought to its end first is held after that.
 * @param maxMs after that it goes on by itself
 * @returns the job, in effect or, where `pause.sinceMs` is null, still to be held
 * @throws JobError JOB_NOT_FOUND, JOB_AMBIGUOUS, JOB_STATE_INVALID
 */
export async function pauseJob(journal: Journal, id: string, maxMs: number): Promise<JobRow> {
  const job = journal.get(id);
  requireRunning(job);
  if (job.kind !== 'backup' && job.kind !== 'replicate')
    throw new JobError('JOB_STATE_INVALID', `job ${job.id} (${job.kind}) cannot be paused`, {
      hint: 'backups and copies that policies ask for can be',
    });
  journal.requestPause(job.id, Date.now() + maxMs);
  const endMs = performance.now() + effectMaxMs;
  while (performance.now() < endMs && journal.pause(job.id)?.sinceMs === null) await sleep(lookMs);
  const row = journal.get(job.id);
  requireRunning(row);
  return row;
}

/**
 * Has a job that is paused go on.
 * @throws JobError JOB_NOT_FOUND, JOB_AMBIGUOUS, JOB_STATE_INVALID
 */
export function resumeJob(journal: Journal, id: string): JobRow {
  const job = journal.get(id);
  requireRunning(job);
  if (job.pause === null)
    throw new JobError('JOB_STATE_INVALID', `job ${job.id} is not paused`, {
      hint: `stillpoint job watch ${job.id}`,
    });
  journal.endPause(job.id);
  return journal.get(job.id);
}

function requireRunning(job: JobRow): void {
  if (job.owner !== null && isOwnerAlive(job.owner)) return;
  throw new JobError('JOB_STATE_INVALID', `nobody works on job ${job.id} (${job.state})`, {
    hint: `stillpoint job show ${job.id}`,
  });
}
