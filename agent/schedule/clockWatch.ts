/** Two clocks, read at the same moment. */
export interface ClockReading {
  /** What the host's clock shows (`Date.now()`). */
  readonly wallMs: number;
  /** A clock that nobody sets (`performance.now()`). */
  readonly monotonicMs: number;
}

/** A clock that is kept right by slewing runs up to 500 ppm too fast or slow: 30 ms in a minute. */
const toleranceMs = 1000;

/** Notices that the clock of the host was set, or that the host was suspended, between one look and the next. */
export class ClockWatch {
  #last: ClockReading;

  constructor(first: ClockReading) {
    this.#last = first;
  }

  /**
   * By how much the clock was set since the last look, forward if positive; 0 for less than a second. After anything
   * else all that was planned must be decided again.
   */
  look(reading: ClockReading): number {
    const { wallMs, monotonicMs } = this.#last;
    this.#last = reading;
    const jumpMs = reading.wallMs - wallMs - (reading.monotonicMs - monotonicMs);
    return Math.abs(jumpMs) < toleranceMs ? 0 : jumpMs;
  }
}
