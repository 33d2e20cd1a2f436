import type { CallOptions } from '../backends/backend.ts';
import {
  type CollectionRecord,
  type Collector,
  currentCollection,
  hasEnded,
  putRecord,
  readMark,
  readVerdict,
} from './collectionRecords.ts';
import { RepositoryError } from './errors.ts';
import { collectionPacksMax } from './limits.ts';
import { LiveChunks } from './liveChunks.ts';
import type { RepositoryContext } from './objects.ts';
import { fenceBackup, hasSessionEnded, type OpenSession, openSessions } from './openSessions.ts';
import { repack } from './repack.ts';
import type { Repository } from './repository.ts';
import { lockedPacks, sweep, type SweepReport } from './sweep.ts';

export interface CollectionOptions extends CallOptions {
  readonly collector: Collector;
  /**
   * Packs are repacked when what is needed of their blobs is less than this part: 0 repacks nothing, 1 whatever is
   * not needed as a whole.
   */
  readonly repackBelow: number;
  /**
   * Asked again and again while a session has not ended that the collection must wait for. `wait` after having waited
   * a while; `fence` makes its backup fail, now or later, and goes on; `leave` ends this call, and another one goes on.
   */
  readonly onOpenSession: (session: OpenSession) => Promise<'wait' | 'fence' | 'leave'>;
  /**
   * The operator's word that nobody writes meanwhile or has written just now: for stores that do not promise what a
   * collection needs otherwise.
   */
  readonly isAlone?: boolean | undefined;
}

export interface CollectionReport {
  readonly collection: number;
  /** Sessions that have not ended; unless there are none, another call goes on. */
  readonly waitingFor: readonly OpenSession[];
  readonly fencedBackups: readonly string[];
  /** Packs of which all that is needed was copied. */
  readonly packsRepacked: number;
  readonly packsDeleted: number;
  readonly freedBytes: number;
  /** Packs that no backup needs, or too little of, and that nobody can delete yet. */
  readonly packsLocked: number;
  /** When the first of them can be deleted, RFC 3339: another collection is worth while then. */
  readonly lockedUntil: string | null;
}

/**
 * Takes out of a repository what no backup refers to (docs/FORMAT.md, "Collection"). Others may write, read, delete
 * and collect meanwhile. One collection goes on where another one ended, at whichever call: what it is about is in
 * the store.
 *
 * Rejects with COLLECTION_UNSAFE, and with the error of anything that cannot be listed or read; nothing is deleted
 * that was not decided upon before.
 */
export async function collectGarbage(
  repository: Repository,
  options: CollectionOptions,
): Promise<CollectionReport> {
  // What is to be copied must be read, and what no index names looked into.
  repository.context.keys.requireReading(repository.context.storage);
  const { createExclusive, consistentListing } = repository.config.capabilities;
  if (options.isAlone !== true && !(createExclusive && consistentListing)) throw unsafe(repository);
  const number = await currentCollection(repository.context, options);
  return new Collection(repository, number, options).run();
}

/** One collection, or what is left of it. */
class Collection {
  readonly #context: RepositoryContext;
  readonly #number: number;
  readonly #packSizeBytes: number;
  readonly #options: CollectionOptions;
  readonly #waitingFor: OpenSession[] = [];
  readonly #fencedBackups: string[] = [];
  #packsRepacked = 0;
  /** Ends of the retentions of packs that stay for now. */
  readonly #locks: Date[] = [];

  constructor({ context, config }: Repository, number: number, options: CollectionOptions) {
    this.#context = context;
    this.#number = number;
    this.#packSizeBytes = config.packSizeBytes;
    this.#options = options;
  }

  async run(): Promise<CollectionReport> {
    const verdict = (await this.#readVerdict()) ?? (await this.#judgeOrFollow());
    const nothing = { packsDeleted: 0, freedBytes: 0, lockedUntil: [] };
    if (verdict === null) return this.#report(nothing);
    const swept = (await this.#isOver())
      ? nothing
      : await sweep(this.#context, this.#number, new Set(verdict.packs), this.#options);
    return this.#report(swept);
  }

  /**
   * Another collector may be faster: then what we look at goes away under our eyes, which is no damage, and its verdict
   * counts.
   */
  async #judgeOrFollow(): Promise<CollectionRecord | null> {
    try {
      return await this.#judge();
    } catch (error) {
      if (!(error instanceof RepositoryError)) throw error;
      const verdict = await this.#readVerdict();
      if (verdict === null && !(await this.#isOver())) throw error;
      return verdict;
    }
  }

  /** From the mark to the verdict. `null` while there are sessions to wait for, or when others ended it meanwhile. */
  async #judge(): Promise<CollectionRecord | null> {
    const condemned = (await this.#condemned()) ?? (await this.#condemn());
    if (await this.#isOver()) return null;
    if (condemned.size > 0 && !(await this.#waitForSessions())) return null;
    await this.#put('verdict', condemned.size > 0 ? await this.#convicted(condemned) : []);
    return this.#readVerdict();
  }

  /**
   * Whether the collection has ended, by another hand. Asked before anything is done about a mark or a verdict: they
   * are removed after the end, and who was suspended since may just have made them once more.
   */
  async #isOver(): Promise<boolean> {
    return hasEnded(this.#context, this.#number, this.#options);
  }

  /** What the mark condemns, `null` when there is none. One that cannot be read condemns nothing. */
  async #condemned(): Promise<ReadonlySet<string> | null> {
    try {
      const mark = await readMark(this.#context, this.#number, this.#options);
      return mark === null ? null : new Set(mark.packs);
    } catch (error) {
      if (error instanceof RepositoryError && error.code === 'REPOSITORY_DAMAGED') return new Set();
      throw error;
    }
  }

  /** Makes the mark; returns what counts, which may be the mark of another collector. */
  async #condemn(): Promise<ReadonlySet<string>> {
    const live = await LiveChunks.survey(this.#context, { ...this.#options, condemned: new Set() });
    const { dead, sparse } = this.#classify(live, await this.#lockedPacks(live));
    const copied = await repack(this.#context, live, sparse, {
      ...this.#options,
      packSizeBytes: this.#packSizeBytes,
    });
    this.#packsRepacked = copied.size;
    await this.#put('mark', [...dead, ...copied]);
    return (await this.#condemned()) ?? new Set();
  }

  /** Packs that would be condemned, and that the store keeps for now: a later collection comes back to them. */
  async #lockedPacks(live: LiveChunks): Promise<ReadonlySet<string>> {
    const { dead, sparse } = this.#classify(live, new Set());
    const locked = await lockedPacks(this.#context, [...dead, ...sparse], this.#options);
    // There may be more of them than a call takes arguments.
    for (const lock of locked.values()) this.#locks.push(lock);
    return new Set(locked.keys());
  }

  /** Packs of which nothing is needed, and those of which too little is. @param locked packs that stay */
  #classify(
    live: LiveChunks,
    locked: ReadonlySet<string>,
  ): { readonly dead: readonly string[]; readonly sparse: ReadonlySet<string> } {
    const uses = live.uses();
    const dead = [...live.present.keys()].filter(
      (pack) => (uses.get(pack)?.liveBytes ?? 0) === 0 && !locked.has(pack),
    );
    const sparse = [...uses].filter(
      ([pack, { liveBytes, totalBytes }]) =>
        liveBytes > 0 &&
        liveBytes < this.#options.repackBelow * totalBytes &&
        !locked.has(pack) &&
        // What is damaged is not copied; it heals by being stored again.
        !live.quarantined.has(pack),
    );
    const condemned = dead.slice(0, collectionPacksMax);
    const room = collectionPacksMax - condemned.length;
    return { dead: condemned, sparse: new Set(sparse.slice(0, room).map(([pack]) => pack)) };
  }

  /** Waits for every session that was there when the mark was made. Returns whether all of them have ended. */
  async #waitForSessions(): Promise<boolean> {
    for (const session of await openSessions(this.#context, this.#options)) {
      const { backupId } = session;
      while (!(await hasSessionEnded(this.#context, session, this.#options))) {
        const answer = await this.#options.onOpenSession(session);
        if (answer === 'leave') {
          this.#waitingFor.push(session);
          break;
        }
        if (answer === 'wait') continue;
        if ((await fenceBackup(this.#context, session, this.#options)) === 'fenced')
          this.#fencedBackups.push(backupId);
      }
    }
    return this.#waitingFor.length === 0;
  }

  /** The second look: what is condemned, there, and needed by no backup. */
  async #convicted(condemned: ReadonlySet<string>): Promise<readonly string[]> {
    const live = await LiveChunks.survey(this.#context, { ...this.#options, condemned });
    const uses = live.uses();
    return [...condemned].filter((pack) => live.present.has(pack) && (uses.get(pack)?.liveBytes ?? 0) === 0);
  }

  async #readVerdict(): Promise<CollectionRecord | null> {
    return readVerdict(this.#context, this.#number, this.#options);
  }

  async #put(type: 'mark' | 'verdict', packs: readonly string[]): Promise<void> {
    const record = { collection: this.#number, ...this.#options.collector, packs: [...packs] };
    await putRecord(this.#context, type, record, this.#options);
  }

  #report({ lockedUntil, ...swept }: SweepReport): CollectionReport {
    const locks = [...this.#locks, ...lockedUntil].toSorted((one, other) => one.getTime() - other.getTime());
    return {
      collection: this.#number,
      waitingFor: this.#waitingFor,
      fencedBackups: this.#fencedBackups,
      packsRepacked: this.#packsRepacked,
      packsLocked: locks.length,
      lockedUntil: locks[0]?.toISOString() ?? null,
      ...swept,
    };
  }
}

function unsafe({ context }: Repository): RepositoryError {
  return new RepositoryError(
    'COLLECTION_UNSAFE',
    `${context.backend.location} may show old listings, or create a name twice: a collection cannot see who writes`,
    { hint: 'collect while no host uses this repository, and say so' },
  );
}
