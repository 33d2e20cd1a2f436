/**
 * The loops of the service, and for how long each may be silent: one looks every few seconds, the other once a minute
 * at least.
 */
export const silentMaxMs = { recovery: 60_000, schedules: 180_000 } as const;

export type Loop = keyof typeof silentMaxMs;

/** What the loops of the service show of themselves. */
export class Pulse {
  readonly #lookedAtMs = new Map<Loop, number>();
  /** When a backup is due next; null: not that it were known. */
  nextDueMs: () => number | null = () => null;

  /** A loop looks now; from its first look on it must go on to. @param nowMs monotonic */
  looked(loop: Loop, nowMs: number = performance.now()): void {
    this.#lookedAtMs.set(loop, nowMs);
  }

  /** A loop that has not looked for longer than it ever should. @param nowMs monotonic */
  silent(nowMs: number = performance.now()): Loop | null {
    for (const [loop, lookedAtMs] of this.#lookedAtMs)
      if (nowMs - lookedAtMs > silentMaxMs[loop]) return loop;
    return null;
  }
}
