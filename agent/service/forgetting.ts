import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Logger } from '../../common/log.ts';
import { pause } from '../../common/wake.ts';
import type { Journal } from '../jobs/journal.ts';

const everyMs = 86_400_000;
/** So many in one transaction. */
const jobsAtOnce = 100;

/**
 * Forgets once a day, and at the start, what the journal is not to remember any more of jobs that have ended; until
 * `signal`. What cannot be done is told in the log and tried again the next day.
 */
export async function forgetEndedJobs(
  journal: Pick<Journal, 'forgetOld'>,
  { log, signal }: { readonly log: Logger; readonly signal: AbortSignal },
): Promise<void> {
  while (!signal.aborted) {
    try {
      const count = await forget(journal, signal);
      if (count > 0) log.info({ count }, 'jobs that ended long ago are forgotten');
    } catch (error) {
      log.error({ err: error }, 'jobs that ended long ago could not be forgotten');
    }
    await pause(everyMs, signal);
  }
}

async function forget(journal: Pick<Journal, 'forgetOld'>, signal: AbortSignal): Promise<number> {
  let count = 0;
  while (!signal.aborted) {
    const forgotten = journal.forgetOld(Date.now(), jobsAtOnce);
    count += forgotten;
    if (forgotten < jobsAtOnce) break;
    await nextTurn();
  }
  return count;
}
