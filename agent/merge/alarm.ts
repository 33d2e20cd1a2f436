import { setTimeout as sleep } from 'node:timers/promises';

/** Wakes who waits before its time: something has happened. */
export class Alarm {
  #controller = new AbortController();

  ring(): void {
    this.#controller.abort();
  }

  /** Waits until it rings, or has rung since the last wait, but no longer than this. */
  async wait(timeMs: number): Promise<void> {
    const { signal } = this.#controller;
    await sleep(timeMs, undefined, { signal }).catch((error: unknown) => {
      if (!signal.aborted) throw error;
    });
    if (signal.aborted) this.#controller = new AbortController();
  }
}
