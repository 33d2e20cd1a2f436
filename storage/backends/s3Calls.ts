import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { StorageError } from '../errors.ts';
import type { CallOptions } from './backend.ts';
import { hasAnswered, type S3Place, storageErrorOf } from './s3Failure.ts';
import type { S3Limits } from './s3Settings.ts';
import { Slots } from './slots.ts';

/** What all calls of a client share. */
export interface S3Patience {
  readonly place: S3Place;
  readonly limits: S3Limits;
  readonly slots: Slots;
  readonly contact: S3Contact;
}

/**
 * Whether the server has ever answered this client, whatever it said. Until then it is as likely that it is not there,
 * and who begins something wants to know soon; afterwards there is work that is worth waiting for.
 */
interface S3Contact {
  isMade: boolean;
}

export function patienceOf(place: S3Place, limits: S3Limits): S3Patience {
  return { place, limits, slots: new Slots(limits.concurrency), contact: { isMade: false } };
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
    const { limits, contact } = this.#patience;
    for (let attempt = 1; ; attempt++) {
      const failure = await this.#attempt(contact.isMade ? send : this.#untilFirstContact(send), signal);
      if ('answer' in failure) return failure.answer;
      const { error } = failure;
      this.#throwIfOver(signal, error);
      const isFinal = !(error instanceof StorageError) || !error.retryable;
      const attemptsMax = contact.isMade
        ? limits.attemptsMax
        : Math.min(limits.attemptsMax, limits.firstContactAttemptsMax);
      if (isFinal || attempt >= attemptsMax) throw error;
      await this.#pause(attempt, signal);
      this.#throwIfOver(signal, error);
    }
  }

  async #attempt<T>(
    send: (signal: AbortSignal) => Promise<T>,
    signal: AbortSignal,
  ): Promise<{ readonly answer: T } | { readonly error: unknown }> {
    const { slots, place, contact } = this.#patience;
    try {
      const answer = await slots.use(signal, () => send(signal));
      contact.isMade = true;
      return { answer };
    } catch (error) {
      contact.isMade ||= hasAnswered(error);
      return { error: storageErrorOf(error, this.#what, place) };
    }
  }

  /** A host that is down lets a connection wait for long before it fails. */
  #untilFirstContact<T>(send: (signal: AbortSignal) => Promise<T>): (signal: AbortSignal) => Promise<T> {
    return async (signal) => {
      const { place, limits, contact } = this.#patience;
      const silent = new AbortController();
      // Others may hear of the server meanwhile.
      const timer = setTimeout(() => contact.isMade || silent.abort(), limits.firstContactMs);
      try {
        return await send(AbortSignal.any([signal, silent.signal]));
      } catch (error) {
        if (!silent.signal.aborted || signal.aborted) throw error;
        throw new StorageError(
          'STORAGE_UNREACHABLE',
          `${this.#what} at ${place.location}: no answer within ${limits.firstContactMs / 1000} s`,
          { hint: `curl -v ${place.endpoint}; try again when it answers` },
        );
      } finally {
        clearTimeout(timer);
      }
    };
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
