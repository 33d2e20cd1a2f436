import { setTimeout as sleep } from 'node:timers/promises';

/** A sleep that can be ended early; an `up` that nobody sleeps through counts for the next one. */
export class Wake implements Disposable {
  readonly #signal: AbortSignal;
  readonly #onAbort = (): void => this.up();
  #signalled = Promise.withResolvers<void>();

  /** @param signal ends the sleep that it finds, too */
  constructor(signal: AbortSignal) {
    this.#signal = signal;
    signal.addEventListener('abort', this.#onAbort, { once: true });
  }

  up(): void {
    this.#signalled.resolve();
  }

  /** @param longestMs until `up` unless told */
  async sleep(longestMs?: number): Promise<void> {
    const timer = longestMs === undefined ? undefined : setTimeout(() => this.up(), longestMs);
    await this.#signalled.promise;
    clearTimeout(timer);
    this.#signalled = Promise.withResolvers();
  }

  /** Needed only where the signal lives longer. */
  [Symbol.dispose](): void {
    this.#signal.removeEventListener('abort', this.#onAbort);
  }
}

/** Waits for so long, or until the signal. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(ms, undefined, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
