import { setTimeout as sleep } from 'node:timers/promises';

/** Waits so long, or until the signal. */
export async function pause(signal: AbortSignal, ms: number): Promise<void> {
  try {
    await sleep(ms, undefined, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
