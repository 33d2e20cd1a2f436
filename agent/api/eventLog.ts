import { ApiError } from './errors.ts';
import { newId } from '../../common/ids.ts';

/** An event and the cursor behind it. */
export interface LoggedEvent<T> {
  readonly cursor: string;
  readonly event: T;
}

/**
 * The last events, in their order. A cursor names a place in it; one that is not in it any more, or was in another one,
 * is told of and never passed over.
 */
export class EventLog<T> {
  readonly #max: number;
  readonly #events: T[] = [];
  /** Number of the first event that is kept. */
  #first = 0;
  #epoch = newId();

  constructor(max: number) {
    this.#max = max;
  }

  append(event: T): void {
    this.#events.push(event);
    if (this.#events.length <= this.#max) return;
    this.#events.shift();
    this.#first += 1;
  }

  /** What happens from here on is not known: every cursor there is has expired. */
  cut(): void {
    this.#events.length = 0;
    this.#first = 0;
    this.#epoch = newId();
  }

  /** The cursor behind the newest event. */
  get end(): string {
    return this.#cursor(this.#first + this.#events.length);
  }

  /** The events behind a cursor. @throws ApiError CURSOR_EXPIRED, REQUEST_INVALID */
  after(cursor: string): readonly LoggedEvent<T>[] {
    const next = this.#numberOf(cursor);
    return this.#events
      .slice(next - this.#first)
      .map((event, index) => ({ cursor: this.#cursor(next + index + 1), event }));
  }

  #cursor(number: number): string {
    return `e.${this.#epoch}.${number}`;
  }

  #numberOf(cursor: string): number {
    const [, epoch, digits] = /^e\.([0-9a-f-]{36})\.(\d{1,15})$/.exec(cursor) ?? [];
    if (epoch === undefined || digits === undefined)
      throw new ApiError('REQUEST_INVALID', 'the cursor is none of events', {
        hint: 'give back the cursor of the last response as it came, or none',
      });
    const number = Number(digits);
    const isKnown = number >= this.#first && number <= this.#first + this.#events.length;
    if (epoch === this.#epoch && isKnown) return number;
    throw new ApiError('CURSOR_EXPIRED', 'what happened since this cursor is not all known any more', {
      hint: 'list jobs and machines again, and watch without a cursor',
    });
  }
}
