import type { Logger } from '../../common/log.ts';

/** Work that goes on after the call that has begun it was answered. */
export class Background {
  readonly #log: Logger;
  readonly #working = new Set<Promise<void>>();

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Lets work go on; what it fails with is told in the log. */
  run(work: Promise<unknown>, about: Readonly<Record<string, unknown>>): void {
    const tracked: Promise<void> = this.#follow(work, about).finally(() => this.#working.delete(tracked));
    this.#working.add(tracked);
  }

  async #follow(work: Promise<unknown>, about: Readonly<Record<string, unknown>>): Promise<void> {
    try {
      await work;
    } catch (error) {
      this.#log.error({ ...about, err: error }, 'what was asked for could not be ended');
    }
  }

  /** Resolves when nothing goes on any more. */
  async settled(): Promise<void> {
    while (this.#working.size > 0) await Promise.all(this.#working);
  }
}
