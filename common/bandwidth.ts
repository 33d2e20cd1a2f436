import { setTimeout as sleep } from 'node:timers/promises';
import { JoinedSignal } from './joinedSignal.ts';

/** A limit that may be changed while others are held to it. */
export class BandwidthLimit {
  #bytesPerSecond: number;
  #changed = new AbortController();

  /** @param bytesPerSecond 0 is without limit */
  constructor(bytesPerSecond = 0) {
    this.#bytesPerSecond = bytesPerSecond;
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  /** Aborted by the next change. */
  get changed(): AbortSignal {
    return this.#changed.signal;
  }

  /** Holds from now on, for those who wait already, too. @param bytesPerSecond 0 is without limit */
  change(bytesPerSecond: number): void {
    if (bytesPerSecond === this.#bytesPerSecond) return;
    this.#bytesPerSecond = bytesPerSecond;
    this.#changed.abort();
    this.#changed = new AbortController();
  }
}

/** What those who share it may take together, within a limit. */
export class Bandwidth {
  readonly #limit: BandwidthLimit;
  /** In force since all was settled last. */
  #bytesPerSecond: number;
  /** What was taken and has not been paid for by time. */
  #owedBytes = 0;
  #settledMs = performance.now();

  /** @param limit without one nobody waits */
  constructor(limit = new BandwidthLimit()) {
    this.#limit = limit;
    this.#bytesPerSecond = limit.bytesPerSecond;
  }

  get bytesPerSecond(): number {
    return this.#limit.bytesPerSecond;
  }

  /** Changes its limit. @param bytesPerSecond 0 is without limit */
  change(bytesPerSecond: number): void {
    this.#settle();
    this.#limit.change(bytesPerSecond);
  }

  /**
   * Waits until all that was taken before is paid for, however much is wanted now: what goes in one piece cannot be
   * held to less than its length. Taking 0 waits only. Rejects with the reason of the signal, if it had to wait.
   */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    for (;;) {
      this.#settle();
      if (this.#owedBytes <= 0) break;
      signal?.throwIfAborted();
      await this.#wait((this.#owedBytes / this.#bytesPerSecond) * 1000, signal);
    }
    this.#owedBytes += bytes;
  }

  /** The time up to now pays at the rate that was in force. */
  #settle(): void {
    const nowMs = performance.now();
    const before = this.#bytesPerSecond;
    const paidBytes = ((nowMs - this.#settledMs) / 1000) * before;
    this.#bytesPerSecond = this.#limit.bytesPerSecond;
    const isFree = before === 0 || this.#bytesPerSecond === 0;
    this.#owedBytes = isFree ? 0 : Math.max(0, this.#owedBytes - paidBytes);
    this.#settledMs = nowMs;
  }

  async #wait(waitMs: number, signal: AbortSignal | undefined): Promise<void> {
    const { changed } = this.#limit;
    // Both may live for much longer, and this is waited for with each piece.
    using joined = new JoinedSignal(signal === undefined ? [changed] : [signal, changed]);
    const either = joined.signal;
    try {
      // At least one: a timer may be early by a part of a millisecond.
      await sleep(Math.max(1, waitMs), undefined, { signal: either });
    } catch (error) {
      // Which of the two it was is looked at by whoever goes on.
      if (!either.aborted) throw error;
    }
  }
}
