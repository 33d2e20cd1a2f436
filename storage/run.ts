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

/** Waits for something that may not listen to a signal; it is left to itself when the signal comes first. */
export async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  const { promise: stopped, reject } = Promise.withResolvers<never>();
  const stop = (): void => reject(signal.reason);
  signal.addEventListener('abort', stop);
  if (signal.aborted) stop();
  try {
    return await Promise.race([work, stopped]);
  } finally {
    signal.removeEventListener('abort', stop);
  }
}
