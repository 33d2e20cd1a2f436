import { unlessAborted } from './unlessAborted.ts';

/**
 * Waits until some work has ended or the signal has come; the work is left to itself then. For loops that go on for as
 * long as a process: one promise of the abort, raced with again and again, would keep every one of these races, with what
 * it ended with, until the signal comes. Rejects with what the work rejects with.
 */
export async function endOrAbort(work: Promise<unknown>, signal: AbortSignal): Promise<void> {
  try {
    await unlessAborted(work, signal);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
