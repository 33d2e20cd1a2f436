import { SnapshotError } from './errors.ts';

/** Where the members of a group wait for each other, in this order. */
const places = ['prepared', 'frozen', 'stopped', 'begun'] as const;
type Place = (typeof places)[number];

export interface TogetherOptions {
  /** Ids of the jobs. */
  readonly members: readonly string[];
  /** How long file systems may be frozen and vCPUs stand still for it; then all go on, and the group fails. */
  readonly pauseMaxMs: number;
  /** How many may read their volumes at the same time, afterwards. */
  readonly readersMax: number;
}

/**
 * One T1 for several machines: nobody goes on to the next place before all are at this one, and when one of them fails,
 * all of them do. T1 is when the last one stands still; what its guest had written until then is in each backup, and
 * nothing that it wrote afterwards.
 */
export class Together {
  readonly #options: TogetherOptions;
  readonly #arrived = new Map<Place, Set<string>>(places.map((place) => [place, new Set()]));
  readonly #complete = new Map(places.map((place) => [place, Promise.withResolvers<void>()]));
  readonly #failed = Promise.withResolvers<never>();
  readonly #failure = new AbortController();
  readonly #waiting: (() => void)[] = [];
  #reading = 0;
  #at: Date | undefined;
  #deadline: NodeJS.Timeout | undefined;

  constructor(options: TogetherOptions) {
    this.#options = options;
    // Whoever is not waiting yet will hear of it when he comes.
    this.#failed.promise.catch(() => undefined);
  }

  /** Aborted, with a SnapshotError GROUP_FAILED, as soon as one of them cannot go on. */
  get failure(): AbortSignal {
    return this.#failure.signal;
  }

  /**
   * Waits until every member is here.
   * @throws SnapshotError GROUP_FAILED as soon as one of them cannot be; the reason of `signal`
   */
  async meet(place: Place, member: string, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const here = this.#arrived.get(place) ?? new Set();
    here.add(member);
    if (place === 'frozen' || place === 'stopped')
      this.#deadline ??= setTimeout(
        () => this.fail(undefined, tooLong(this.#options)),
        this.#options.pauseMaxMs,
      );
    const complete = this.#complete.get(place);
    if (here.size === this.#options.members.length) {
      if (place === 'stopped') this.#at = new Date();
      if (place === 'begun') clearTimeout(this.#deadline);
      complete?.resolve();
    }
    const aborted = Promise.withResolvers<never>();
    const abort = (): void => aborted.reject(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      await Promise.race([this.#failed.promise, complete?.promise, aborted.promise]);
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  /** T1, once all stand still. */
  get at(): Date {
    if (this.#at === undefined) throw new Error('not all machines of the group stand still');
    return this.#at;
  }

  /** One of them cannot go on: nobody can. Once all have begun it concerns nobody else any more. */
  fail(machine: string | undefined, error: { readonly message: string } | undefined): void {
    clearTimeout(this.#deadline);
    const why = [machine, error?.message].filter((part) => part !== undefined).join(': ');
    const failure = new SnapshotError(
      'GROUP_FAILED',
      `the machines are backed up together or not at all; ${why}`,
      {
        cause: error,
        hint: 'put that one right, or leave it out, and start the backup again',
        retryable: true,
      },
    );
    this.#failed.reject(failure);
    this.#failure.abort(failure);
  }

  /**
   * Does `work` when it is this member's turn to read its volumes.
   * @throws the reason of `signal`, also while it waits: its guest goes on writing
   */
  async reading<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    while (this.#reading >= this.#options.readersMax && !signal.aborted) {
      const { promise, resolve: settle } = Promise.withResolvers<void>();
      const resolve = (): void => settle();
      this.#waiting.push(resolve);
      signal.addEventListener('abort', resolve, { once: true });
      await promise;
      signal.removeEventListener('abort', resolve);
    }
    signal.throwIfAborted();
    this.#reading += 1;
    try {
      return await work();
    } finally {
      this.#reading -= 1;
      // All of them: one that has given up must not take the turn of another.
      for (const wake of this.#waiting.splice(0)) wake();
    }
  }
}

function tooLong({ pauseMaxMs }: TogetherOptions): Error {
  return new Error(`they did not all stand still and begin within ${pauseMaxMs / 1000} s`);
}
