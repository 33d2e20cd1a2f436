import type { Throttle } from './throttle.ts';
import { unlessAborted } from './unlessAborted.ts';

/** Holds work back for as long as somebody wants that: what is under way ends, and no further data is moved. */
export class Hold implements Throttle {
  #closed: PromiseWithResolvers<void> | null = null;
  #openedAtMs = Number.NEGATIVE_INFINITY;

  get isClosed(): boolean {
    return this.#closed !== null;
  }

  close(): void {
    this.#closed ??= Promise.withResolvers<void>();
  }

  open(): void {
    if (this.#closed === null) return;
    this.#openedAtMs = performance.now();
    this.#closed.resolve();
    this.#closed = null;
  }

  /** Waits while it is closed, however little is to be moved. Rejects with the reason of the signal. */
  async take(_bytes: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    while (this.#closed !== null) await unlessAborted(this.#closed.promise, signal);
  }

  /** Whether work was held back at any time in the last so many milliseconds: then its silence means nothing. */
  heldWithin(ms: number): boolean {
    return this.isClosed || performance.now() - this.#openedAtMs < ms;
  }
}
