import type { Hold } from '../common/hold.ts';
import { JoinedSignal } from '../common/joinedSignal.ts';
import { StorageError } from './errors.ts';

/** The deadline of one operation, which every sign of progress puts off. */
export class Watch {
  readonly expired: Promise<never>;
  readonly #abort = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly #joined: JoinedSignal[] = [];

  /** @param hold who is held back by it is silent without being to blame */
  constructor(silenceMs: number, error: () => StorageError, hold?: Hold) {
    const { promise, reject } = Promise.withResolvers<never>();
    this.expired = promise;
    this.#timer = setTimeout(() => {
      if (hold?.heldWithin(silenceMs) === true) {
        this.#timer.refresh();
        return;
      }
      const reason = error();
      this.#abort.abort(reason);
      reject(reason);
    }, silenceMs);
  }

  get isExpired(): boolean {
    return this.#abort.signal.aborted;
  }

  alive(): void {
    this.#timer.refresh();
  }

  /** Aborted by the end of the patience, and by `signal` until the operation has ended. */
  signalWith(signal: AbortSignal | undefined): AbortSignal {
    if (signal === undefined) return this.#abort.signal;
    // A job has one signal for all its reads, of which there may be millions: none may leave anything at it.
    const joined = new JoinedSignal([signal, this.#abort.signal]);
    this.#joined.push(joined);
    return joined.signal;
  }

  stop(): void {
    clearTimeout(this.#timer);
    for (const joined of this.#joined) joined[Symbol.dispose]();
  }
}

/**
 * Runs an operation, and gives it up when it has given no sign of life for so long; the call stays behind.
 * @param hold the silence of what it holds back does not count
 * @throws StorageError STORAGE_UNREACHABLE; what the operation throws
 */
export async function withDeadline<T>(
  storage: { readonly name: string; readonly location: string },
  what: string,
  silenceMs: number,
  operation: (watch: Watch) => Promise<T>,
  hold?: Hold,
): Promise<T> {
  const watch = new Watch(
    silenceMs,
    () =>
      new StorageError(
        'STORAGE_UNREACHABLE',
        `storage ${storage.name} has not answered for ${Math.round(silenceMs / 1000)} s (${what})`,
        {
          hint: `findmnt -T ${storage.location}; a network mount whose server is gone hangs: bring it back, or umount -l it`,
          retryable: true,
        },
      ),
    hold,
  );
  const call = operation(watch);
  try {
    return await Promise.race([call, watch.expired]);
  } finally {
    watch.stop();
  }
}
