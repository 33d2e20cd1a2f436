/** How long to wait before the next attempt. */
export interface BackoffSettings {
  readonly firstMs: number;
  readonly maxMs: number;
  /** From 0 to 1: hosts that lost the controller at the same moment do not come back at the same moment. */
  readonly random: () => number;
}

/** Delays that double up to a maximum, each shortened by up to a half by chance. */
export class Backoff {
  readonly #settings: BackoffSettings;
  #failures = 0;

  constructor(settings: BackoffSettings) {
    this.#settings = settings;
  }

  /** What was tried has worked: the next delay is the first one again. */
  reset(): void {
    this.#failures = 0;
  }

  /** Delay before the next attempt, in milliseconds. */
  next(): number {
    const { firstMs, maxMs, random } = this.#settings;
    const longestMs = Math.min(maxMs, firstMs * 2 ** this.#failures);
    if (longestMs < maxMs) this.#failures += 1;
    return longestMs * (1 - random() / 2);
  }
}
