/** A sleep that can be ended early; an `up` that nobody sleeps through counts for the next one. */
export class Wake {
  #signalled = Promise.withResolvers<void>();

  up(): void {
    this.#signalled.resolve();
  }

  /** Returns when somebody says `up`, after `longestMs`, or when the signal aborts. */
  async sleep(longestMs: number, signal: AbortSignal): Promise<void> {
    const up = (): void => this.up();
    const timer = setTimeout(up, longestMs);
    signal.addEventListener('abort', up, { once: true });
    if (signal.aborted) up();
    await this.#signalled.promise;
    clearTimeout(timer);
    signal.removeEventListener('abort', up);
    this.#signalled = Promise.withResolvers();
  }
}
