import { giveBackFreedMemory } from '../../common/freedMemory.ts';
import type { Logger } from '../../common/log.ts';
import { pause } from '../../common/wake.ts';
import type { JobSignals } from '../api/jobSignals.ts';

const lookIntervalMs = 10_000;

export interface RestingMemoryOptions {
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** Of the jobs of this process; one may begin and end between two looks. */
  readonly jobSignals: Pick<JobSignals, 'onChange'>;
  /** How often it is looked whether jobs are at work; 10 s unless told. */
  readonly lookMs?: number | undefined;
  readonly giveBack?: (() => Promise<void>) | undefined;
}

/**
 * Gives freed memory back to the host whenever the service has come to rest: after its start, and after its last job.
 * Until the signal.
 */
export async function giveBackAtRest(
  engine: { readonly atWork: readonly string[] },
  { log, signal, jobSignals, lookMs = lookIntervalMs, giveBack = giveBackFreedMemory }: RestingMemoryOptions,
): Promise<void> {
  let hasWorked = true;
  using _ = jobSignals.onChange(() => {
    hasWorked = true;
  });
  for (;;) {
    await pause(lookMs, signal);
    if (signal.aborted) return;
    if (engine.atWork.length > 0 || !hasWorked) continue;
    hasWorked = false;
    try {
      await giveBack();
    } catch (error) {
      log.debug({ err: error }, 'freed memory cannot be given back to the host');
      return;
    }
  }
}
