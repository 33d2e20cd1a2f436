import type { JobProgress } from '../../agent/jobs/job.ts';
import type { PolicyCopy, WatchJobResponse } from '../../proto/generated/stillpoint/v1/agent.ts';
import { type AgentClient, required } from './agentClient.ts';
import { jobOf, progressOf, type ToldJob } from './fromMessages.ts';
import { failureOf } from './serviceFailure.ts';

/** What a follower of a job does with what is new about it. */
export interface JobFollower {
  job?(job: ToldJob): void;
  progress?(progress: JobProgress, job: ToldJob): void;
  warning?(message: string): void;
}

/**
 * Follows a job to its end, and where another one takes its place, that one.
 * @returns the last job, as it was when nobody worked on it any more
 * @throws CliError SERVICE_LOST: what becomes of the job then is up to the service when it is back
 */
export async function followJob(client: AgentClient, id: string, follower: JobFollower): Promise<ToldJob> {
  let told: ToldJob | undefined;
  let replacement = '';
  try {
    const updates: AsyncIterable<WatchJobResponse> = client.watchJob({ id, cursor: '', withCopies: false });
    for await (const { update } of updates) {
      if (update?.$case === 'job') {
        told = jobOf(update.value);
        replacement = update.value.replacedByJobId;
        follower.job?.(told);
      }
      if (update?.$case === 'progress' && told !== undefined)
        follower.progress?.(progressOf(told, update.value), told);
      if (update?.$case === 'warning') follower.warning?.(update.value);
    }
  } catch (error) {
    const what = told === undefined ? `job ${id}` : `job ${id} (${told.kind} of ${told.machineName})`;
    throw failureOf(error, {
      what: `while ${what} was at work`,
      next: `its machine is put in order when the service is back, or by: stillpoint agent --once; then: stillpoint job show ${id}`,
    });
  }
  return replacement === '' ? required(told) : followJob(client, replacement, follower);
}

/**
 * Tells of the copies that the service makes after a backup, until there are no more or the signal: they go on then.
 * @throws CliError SERVICE_LOST
 */
export async function followCopies(
  client: AgentClient,
  jobId: string,
  onCopy: (copy: PolicyCopy) => void,
  signal: AbortSignal,
): Promise<void> {
  if (signal.aborted) return;
  const stream = client.watchJob({ id: jobId, cursor: '', withCopies: true });
  const updates: AsyncIterable<WatchJobResponse> = stream;
  const leave = (): void => stream.cancel();
  signal.addEventListener('abort', leave, { once: true });
  try {
    for await (const { update } of updates) if (update?.$case === 'copy') onCopy(update.value);
  } catch (error) {
    if (signal.aborted) return;
    throw failureOf(error, {
      what: 'while it copied the backup on',
      next: 'the next backup of the machine brings what is missing',
    });
  } finally {
    signal.removeEventListener('abort', leave);
  }
}
