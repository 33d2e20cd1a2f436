import { Hold } from '../../common/hold.ts';
import type { Journal } from './journal.ts';

/** Who hears of the pauses of a job. */
export interface PauseListener {
  /** From now on the job moves no data. @param sinceMs milliseconds since 1970 */
  paused(sinceMs: number): void;
  resumed(): void;
  /** Nobody resumed it in time. */
  expired(): void;
}

/**
 * Holds the work of one job when somebody in any process wants it to be paused, where the step allows that, and lets it
 * go on when that was taken back or its time is over. The journal is looked at twice a second by the job's owner.
 */
export class PauseControl {
  readonly hold = new Hold();
  readonly #jobId: string;
  readonly #journal: Pick<Journal, 'pause' | 'endPause' | 'notePaused'>;
  readonly #listener: PauseListener;
  #isAllowed = false;
  #isHeld = false;
  /** The pause that is wanted: its end as it was asked for, and on the monotonic clock, which nobody sets. */
  #wanted: { readonly untilMs: number; readonly endsAtMs: number } | null = null;

  constructor(
    jobId: string,
    journal: Pick<Journal, 'pause' | 'endPause' | 'notePaused'>,
    listener: PauseListener,
  ) {
    this.#jobId = jobId;
    this.#journal = journal;
    this.#listener = listener;
  }

  /** Whether what the job does now may be held. */
  allow(isAllowed: boolean): void {
    this.#isAllowed = isAllowed;
    // Also where the journal cannot be asked.
    if (!isAllowed) this.hold.open();
    this.look();
  }

  /** Does what is wanted by now. @throws JobError, or the error of SQLite; a pause ends in time all the same */
  look(): void {
    if (this.#isOver) this.hold.open();
    const untilMs = this.#journal.pause(this.#jobId)?.untilMs;
    if (untilMs === undefined) this.#wanted = null;
    else if (untilMs !== this.#wanted?.untilMs)
      this.#wanted = { untilMs, endsAtMs: performance.now() + untilMs - Date.now() };
    if (this.#isOver) {
      this.#journal.endPause(this.#jobId);
      this.#wanted = null;
      this.#listener.expired();
    }
    this.#apply(this.#wanted !== null && this.#isAllowed);
  }

  get #isOver(): boolean {
    return this.#wanted !== null && performance.now() >= this.#wanted.endsAtMs;
  }

  #apply(isHeld: boolean): void {
    if (isHeld === this.#isHeld) return;
    this.#isHeld = isHeld;
    if (isHeld) {
      this.hold.close();
      const sinceMs = Date.now();
      this.#journal.notePaused(this.#jobId, sinceMs);
      this.#listener.paused(sinceMs);
    } else {
      this.hold.open();
      this.#journal.notePaused(this.#jobId, null);
      this.#listener.resumed();
    }
  }
}
