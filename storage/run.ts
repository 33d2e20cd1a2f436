import { unlessAborted } from '../common/unlessAborted.ts';

/** What stops all of a piece of work as soon as one part of it fails. */
export class Run {
  /** Its reason is the first failure, or that of the caller's signal. */
  readonly signal: AbortSignal;
  readonly #failure = new AbortController();

  constructor(signal: AbortSignal | undefined) {
    const own = this.#failure.signal;
    this.signal = signal === undefined ? own : AbortSignal.any([signal, own]);
  }

  /** May be called for everything that fails after the first failure, too. */
  fail(error: unknown): void {
    this.#failure.abort(error);
  }

  /** Waits for something that may not listen to the signal. */
  async unlessStopped<T>(work: Promise<T>): Promise<T> {
    return unlessAborted(work, this.signal);
  }
}
