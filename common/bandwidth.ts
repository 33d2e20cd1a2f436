import { setTimeout as sleep } from 'node:timers/promises';

/** A bandwidth that several share, and that may be changed while they wait for it. */
export class Bandwidth {
  #bytesPerSecond: number;
  /** What was taken and has not been paid for by time. */
  #owedBytes = 0;
  #settledMs = performance.now();
  #changed = new AbortController();

  /** @param bytesPerSecond 0 is without limit */
  constructor(bytesPerSecond = 0) {
    this.#bytesPerSecond = bytesPerSecond;
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  /** Holds from now on, for those who wait already, too. @param bytesPerSecond 0 is without limit */
  change(bytesPerSecond: number): void {
    this.#settle();
    this.#bytesPerSecond = bytesPerSecond;
    this.#changed.abort();
    this.#changed = new AbortController();
  }

  /**
   * Waits until all that was taken before is paid for, however much is wanted now: what goes in one piece cannot be
   * held to less than its length. Rejects with the reason of the signal.
   */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    for (;;) {
      signal?.throwIfAborted();
      this.#settle();
      if (this.#owedBytes <= 0) break;
      await this.#wait((this.#owedBytes / this.#bytesPerSecond) * 1000, signal);
    }
    this.#owedBytes += bytes;
  }

  #settle(): void {
    const nowMs = performance.now();
    const paidBytes = ((nowMs - this.#settledMs) / 1000) * this.#bytesPerSecond;
    this.#owedBytes = this.#bytesPerSecond === 0 ? 0 : Math.max(0, this.#owedBytes - paidBytes);
    this.#settledMs = nowMs;
  }

  async #wait(waitMs: number, signal: AbortSignal | undefined): Promise<void> {
    const changed = this.#changed.signal;
    const either = signal === undefined ? changed : AbortSignal.any([signal, changed]);
    try {
      // At least one: a timer may be early by a part of a millisecond.
      await sleep(Math.max(1, waitMs), undefined, { signal: either });
    } catch (error) {
      // Which of the two it was is looked at by whoever goes on.
      if (!either.aborted) throw error;
    }
  }
}
