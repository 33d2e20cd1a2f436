/** Weight of the newest measurement: a rate that follows changes within a few seconds, and does not jump. */
const smoothing = 0.3;
/** Shorter intervals say nothing about a rate. */
const intervalMsMin = 200;

/** Rate and remaining time of what a step has reported; absent until there are two reports. */
export interface Rate {
  readonly bytesPerSecond?: number;
  readonly etaSeconds?: number;
}

/** Turns reports of bytes done into a smoothed rate and an estimate of the time that is left. */
export class RateMeter {
  #what = '';
  #atMs = 0;
  #doneBytes = 0;
  #bytesPerSecond: number | undefined;

  /** @param nowMs monotonic clock */
  measure(
    report: {
      readonly step: string;
      readonly detail?: string | undefined;
      readonly doneBytes?: number | undefined;
      readonly totalBytes?: number | undefined;
    },
    nowMs: number = performance.now(),
  ): Rate {
    const { doneBytes, totalBytes } = report;
    if (doneBytes === undefined) return {};
    const what = `${report.step} ${report.detail ?? ''}`;
    if (what !== this.#what || doneBytes < this.#doneBytes) {
      this.#what = what;
      this.#atMs = nowMs;
      this.#doneBytes = doneBytes;
      this.#bytesPerSecond = undefined;
      return {};
    }
    const elapsedMs = nowMs - this.#atMs;
    if (elapsedMs >= intervalMsMin) {
      const measured = ((doneBytes - this.#doneBytes) * 1000) / elapsedMs;
      this.#bytesPerSecond =
        this.#bytesPerSecond === undefined
          ? measured
          : smoothing * measured + (1 - smoothing) * this.#bytesPerSecond;
      this.#atMs = nowMs;
      this.#doneBytes = doneBytes;
    }
    if (this.#bytesPerSecond === undefined) return {};
    const bytesPerSecond = Math.round(this.#bytesPerSecond);
    if (totalBytes === undefined || bytesPerSecond === 0) return { bytesPerSecond };
    return { bytesPerSecond, etaSeconds: Math.max(0, Math.round((totalBytes - doneBytes) / bytesPerSecond)) };
  }
}
