import type { CallOptions } from '../backends/backend.ts';
import { fenceBackup, hasSessionEnded, type OpenSession } from './openSessions.ts';
import type { RepositoryContext } from './objects.ts';
import { isKnownDead } from './sessionOwner.ts';

/** What a host knows of a job by which a session was announced. */
export type JobFate = 'unfinished' | 'ended' | 'unknown';

/**
 * Whether nobody of this host will go on with a session: its job has ended, or it is a copy, which is no job of the
 * machine's, and its process is dead. What this host does not know is somebody else's to end.
 */
export function isLeft({ backupId, announcement }: OpenSession, fateOf: (jobId: string) => JobFate): boolean {
  if (announcement === null) return false;
  const { jobId = backupId } = announcement;
  // A copy is called after its backup: whoever repeats it finds what has arrived.
  return jobId === backupId ? isKnownDead(announcement) : fateOf(jobId) === 'ended';
}

/** Ends a session that nobody goes on with: its backup can never be committed by it, and no collection waits for it. */
export async function endSession(
  context: RepositoryContext,
  session: OpenSession,
  call: CallOptions = {},
): Promise<void> {
  await fenceBackup(context, session, call);
  await hasSessionEnded(context, session, call);
}
