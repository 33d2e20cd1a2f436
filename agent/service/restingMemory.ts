import { giveBackFreedMemory } from '../../common/freedMemory.ts';
import type { Logger } from '../../common/log.ts';
import { pause } from '../../common/wake.ts';

const lookIntervalMs = 10_000;

export interface RestingMemoryOptions {
  readonly log: Logger;
  readonly signal: AbortSignal;
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
  { log, signal, lookMs = lookIntervalMs, giveBack = giveBackFreedMemory }: RestingMemoryOptions,
): Promise<void> {
  let wasAtWork = true;
  for (;;) {
    await pause(lookMs, signal);
    if (signal.aborted) return;
    const isAtWork = engine.atWork.length > 0;
    if (wasAtWork && !isAtWork) {
      try {
        await giveBack();
      } catch (error) {
        log.debug({ err: error }, 'freed memory cannot be given back to the host');
        return;
      }
    }
    wasAtWork = isAtWork;
  }
}
