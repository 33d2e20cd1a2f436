import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { StorageError } from '../errors.ts';
import type { CallOptions } from './backend.ts';
import { type S3Place, storageErrorOf } from './s3Failure.ts';
import type { S3Limits } from './s3Settings.ts';
import { Slots } from './slots.ts';

/** What all calls of a client share. */
export interface S3Patience {
  readonly place: S3Place;
  readonly limits: S3Limits;
  readonly slots: Slots;
}

export function patienceOf(place: S3Place, limits: S3Limits): S3Patience {
  return { place, limits, slots: new Slots(limits.concurrency) };
}

interface CallSignals {
  readonly own: AbortSignal;
  readonly caller: AbortSignal | undefined;
}

/** One call of the port: its requests are repeated after pauses, and share its time. */
export class S3Call {
  /** Aborted when the caller's signal is, or when the time is over. */
  readonly signal: AbortSignal;
  readonly #what: string;
  readonly #patience: S3Patience;
  readonly #caller: AbortSignal | undefined;

  private constructor(what: string, patience: S3Patience, signals: CallSignals) {
    this.#what = what;
    this.#patience = patience;
    this.signal = signals.own;
    this.#caller = signals.caller;
  }

  /**
   * Runs a call. Rejects with StorageError or the reason of the caller's signal.
   *
   * @param what it does, for errors
   */
  static async run<T>(
    what: string,
    patience: S3Patience,
    options: CallOptions,
    work: (call: S3Call) => Promise<T>,
  ): Promise<T> {
    const { signal: caller } = options;
    caller?.throwIfAborted();
    // Not AbortSignal.any and .timeout: what they hold is freed long after the call, and a backup makes many.
    const ends = new AbortController();
    const onAbort = (): void => ends.abort(caller?.reason);
    const timer = setTimeout(() => ends.abort(), patience.limits.callMs);
    caller?.addEventListener('abort', onAbort, { once: true });
    try {
      return await work(new S3Call(what, patience, { own: ends.signal, caller }));
    } finally {
      clearTimeout(timer);
      caller?.removeEventListener('abort', onAbort);
    }
  }

  /**
   * The answer to a request that may be repeated.
   *
   * @param signal one that follows `this.signal`, for requests that others can make superfluous
   */
  async request<T>(send: (signal: AbortSignal) => Promise<T>, signal: AbortSignal = this.signal): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      const failure = await this.#attempt(send, signal);
      if ('answer' in failure) return failure.answer;
      const { error } = failure;
      this.#throwIfOver(signal, error);
      const isFinal = !(error instanceof StorageError) || !error.retryable;
      if (isFinal || attempt >= this.#patience.limits.attemptsMax) throw error;
      await this.#pause(attempt, signal);
      this.#throwIfOver(signal, error);
    }
  }

  async #attempt<T>(
    send: (signal: AbortSignal) => Promise<T>,
    signal: AbortSignal,
  ): Promise<{ readonly answer: T } | { readonly error: unknown }> {
    const { slots, place } = this.#patience;
    try {
      return { answer: await slots.use(signal, () => send(signal)) };
    } catch (error) {
      return { error: storageErrorOf(error, this.#what, place) };
    }
  }

  /** Up to a length that doubles, at random, so that those who failed together do not come back together. */
  async #pause(attempt: number, signal: AbortSignal): Promise<void> {
    const { pauseMs, pauseMsMax } = this.#patience.limits;
    const longestMs = Math.min(pauseMsMax, pauseMs * 2 ** (attempt - 1));
    try {
      await sleep(randomInt(longestMs + 1), undefined, { signal });
    } catch (error) {
      // Which signal it was, is looked at by whoever goes on.
      if (!signal.aborted) throw error;
    }
  }

  #throwIfOver(signal: AbortSignal, failure: unknown): void {
    this.#caller?.throwIfAborted();
    if (this.signal.aborted) {
      const { place, limits } = this.#patience;
      const last = failure instanceof StorageError ? `; last: ${failure.message}` : '';
      throw new StorageError(
        'STORAGE_UNREACHABLE',
        `${this.#what} at ${place.location} did not end within ${limits.callMs / 1000} s${last}`,
        { hint: `curl -v ${place.endpoint}; try again when it answers`, retryable: true },
      );
    }
    signal.throwIfAborted();
  }
}
