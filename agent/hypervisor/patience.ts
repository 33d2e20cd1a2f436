import { setTimeout as sleep } from 'node:timers/promises';
import { HypervisorError } from './errors.ts';

/** Wait after the first failure; doubled with each further one. */
const firstWaitMs = 500;
/** Longest wait between two attempts while libvirt fails. */
const waitMsMax = 10_000;
/** About six minutes. */
const attemptsMax = 40;

/** Waits before another attempt of what has failed so often. */
export async function beforeNextAttempt(failed: number): Promise<void> {
  await sleep(Math.min(waitMsMax, firstWaitMs * 2 ** (failed - 1)));
}

/**
 * Does what must be done for a machine to be in order, and tries again while libvirt refuses it or does not answer.
 * The operation looks at the machine itself: it may have been done although the answer was lost.
 * @throws HypervisorError when libvirt has failed for minutes; anything else at once
 */
export async function patiently<T>(
  what: string,
  options: { warn(message: string): void },
  operation: () => Promise<T>,
): Promise<T> {
  for (let failed = 1; ; failed += 1) {
    try {
      return await operation();
    } catch (error) {
      if (!(error instanceof HypervisorError) || failed >= attemptsMax) throw error;
      options.warn(`recovery: ${what} failed (attempt ${failed}): ${error.message}`);
      await beforeNextAttempt(failed);
    }
  }
}
