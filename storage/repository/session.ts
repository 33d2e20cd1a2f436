import type { Throttle } from '../../common/throttle.ts';
import type { CallOptions } from '../backends/backend.ts';
import {
  type BackupManifest,
  type ContentReference,
  contentsOf,
  decodeManifest,
  encodeManifest,
} from './backupManifest.ts';
import type { ChunkDomain } from './chunkId.ts';
import type { ChunkIndex } from './chunkIndex.ts';
import type { ChunkWork } from './chunkWorkers.ts';
import { ChunkReader } from './chunkReader.ts';
import { condemnedPacks, quarantinedPacks } from './condemned.ts';
import { RepositoryError } from './errors.ts';
import { encodeIndex, type IndexedPack, indexBytesTarget, indexedBytes, indexGroups } from './indexObject.ts';
import { lockReferences } from './lockReferences.ts';
import { type Attempt, deletionName, indexName, manifestName, packName, sessionName } from './names.ts';
import { getObject, putIndex, putObject, type RepositoryContext } from './objects.ts';
import { fenceBackup } from './openSessions.ts';
import { asBuffer } from './ownMemory.ts';
import { packKindOf } from './packFormat.ts';
import { PackQueue } from './packQueue.ts';
import { checkReferences, referencedChunks } from './references.ts';
import { thisSessionOwner } from './sessionOwner.ts';
import type { ChunkSink } from './streamWriter.ts';

/** Who writes a backup. */
export interface SessionOptions extends Attempt {
  /** What the writer calls its work. */
  readonly jobId?: string | undefined;
  readonly host: string;
  readonly startedAt: string;
  /** Of a pack's body, at which it is closed. */
  readonly packSizeBytes: number;
  /** Passed before a pack is sent. */
  readonly throttle?: Throttle | undefined;
  /** What was stored is made known to others each time that it takes so much of an index; less in tests. */
  readonly indexBytes?: number | undefined;
}

/** About 5 GiB of data: a writer that was killed cannot look into its packs for what no index names. */
const writerIndexBytes = 256 * 1024;

/** How a backup is committed. */
export interface CommitOptions extends CallOptions {
  /** Called again and again: of a large volume there is much to look at. */
  readonly onLook?: (() => void) | undefined;
}

/** What a session has stored. */
export interface SessionStatistics {
  /** Chunks that were asked to be stored, and those that were not there yet. */
  readonly chunks: number;
  readonly newChunks: number;
  /** What they take in packs. */
  readonly newBytes: number;
}

/**
 * Writes one backup. Its data is durable before its index, its index before its manifest (invariant 2); the creation
 * of the manifest is the commit (invariant 3). Until then there is nothing of it for anybody, and whatever fails
 * fails the backup and nothing else (invariant 10).
 */
export class RepositorySession implements ChunkSink {
  readonly backupId: string;
  readonly attempt: number;
  readonly #context: RepositoryContext;
  readonly #index: ChunkIndex;
  readonly #excluded: Set<string>;
  readonly #work: ChunkWork;
  readonly #packs: PackQueue;
  /** Chunks in packs that are not stored yet. */
  readonly #pending = new Set<string>();
  /** Packs that were there when they were asked for. */
  readonly #seen = new Set<number>();
  /** Packs that are being asked for. */
  readonly #looks = new Map<number, Promise<boolean>>();
  readonly #newPacks: IndexedPack[] = [];
  readonly #newIndexes: string[] = [];
  readonly #indexBytes: number;
  #packsIndexed = 0;
  /** What the others will take in indexes. */
  #unindexedBytes = 0;
  /** The last of those that are being made. Never rejects. */
  #indexing: Promise<void> = Promise.resolve();
  #state: 'open' | 'committed' | 'failed' = 'open';
  #statistics = { chunks: 0, newChunks: 0, newBytes: 0 };

  private constructor(
    context: RepositoryContext,
    index: ChunkIndex,
    options: SessionOptions,
    excluded: Set<string>,
  ) {
    this.#context = context;
    this.#index = index;
    this.backupId = options.backupId;
    this.attempt = options.attempt;
    this.#excluded = excluded;
    this.#indexBytes = options.indexBytes ?? (context.keys.isWriter ? writerIndexBytes : indexBytesTarget);
    this.#work = context.workers.begin();
    this.#packs = new PackQueue(context, {
      packSizeBytes: options.packSizeBytes,
      work: this.#work,
      throttle: options.throttle,
      onStored: (pack) => this.#onStored(pack),
    });
  }

  /**
   * Announces the backup, then asks what is condemned, then reads the indexes. In this order a collection either sees
   * the session, waits for it and reads its manifest; or the session sees the collection's mark (invariant 5).
   *
   * Rejects with BACKUP_FENCED when the backup of this id was deleted or given up.
   */
  static async begin(
    context: RepositoryContext,
    options: SessionOptions & { loadIndex(): Promise<ChunkIndex> },
    call: CallOptions = {},
  ): Promise<RepositorySession> {
    const { backupId, attempt, jobId, host, startedAt } = options;
    await assertPossible(context, options, call);
    const announcement = JSON.stringify({
      formatVersion: 1,
      backupId,
      jobId,
      host,
      processId: process.pid,
      owner: thisSessionOwner(),
      startedAt,
    });
    // Of a session that is begun again after a crash, the first announcement stands.
    await putObject(context, 'session', sessionName(backupId, attempt), Buffer.from(announcement), call);
    const excluded = new Set([
      ...(await condemnedPacks(context, call)),
      ...(await quarantinedPacks(context, call)),
    ]);
    const index = await options.loadIndex();
    return new RepositorySession(context, index, options, excluded);
  }

  get statistics(): SessionStatistics {
    return this.#statistics;
  }

  /** Memory that packs have taken so far; it is used again. */
  get packMemoryBytes(): number {
    return this.#packs.memoryBytes;
  }

  /**
   * Stores a chunk, unless the repository has it already. Several may be on their way; what is equal is stored once.
   *
   * Rejects with what kept a pack from being stored, which may be one of chunks that were put before.
   */
  async put(domain: ChunkDomain, content: Buffer, signal?: AbortSignal): Promise<Buffer> {
    this.#assertOpen();
    signal?.throwIfAborted();
    const idKey = this.#context.namer.keyOf(domain);
    const id = asBuffer(await this.#work.run({ kind: 'identify', idKey, content }, content.length));
    this.#statistics = { ...this.#statistics, chunks: this.#statistics.chunks + 1 };
    await this.#store(id, domain, content, { signal });
    // A job that is killed loses less, and no index is larger than may be.
    if (this.#unindexedBytes >= this.#indexBytes) await this.#indexStored({ signal });
    return id;
  }

  /**
   * Makes it a backup. Repeating a commit whose answer was lost, also with another session after a crash, finds
   * that it has happened. `leftBehind` is why the announcement could not be taken back; the backup stands all the same.
   *
   * Rejects with BACKUP_FENCED, and with REPOSITORY_DAMAGED or CHUNK_MISSING when something that was to be reused is
   * gone: another session stores it again. With OBJECT_LOCK_NOT_ENFORCED when the store does not keep what it is told to.
   */
  async commit(
    manifest: BackupManifest,
    options: CommitOptions = {},
  ): Promise<{ readonly manifest: BackupManifest; readonly leftBehind: unknown }> {
    this.#assertOpen();
    if (manifest.id !== this.backupId) throw new RangeError('the manifest is that of another backup');
    const bytes = encodeManifest(manifest);
    try {
      await this.flush(options);
      const packs = await this.#checkReferences(manifest, options);
      const { backupId, attempt } = this;
      const references = { backupId, attempt, packs, index: this.#index, newIndexes: this.#newIndexes };
      await lockReferences(this.#context, references, options);
      const committed = await this.#publish(manifest, bytes, options);
      this.#state = 'committed';
      return { manifest: committed, leftBehind: await this.#takeBack(options) };
    } catch (error) {
      this.#state = 'failed';
      // Of a session that was fenced the packs may be gone, and that is no damage.
      const fence = error instanceof RepositoryError ? await this.#fence(options) : null;
      throw fence ?? error;
    }
  }

  /** Whether everything that a stream refers to can be reused: it is there, and in no pack that was found damaged. */
  async holds(content: ContentReference, options: CommitOptions = {}): Promise<boolean> {
    const reader = new ChunkReader(this.#context, this.#index);
    for await (const { id } of referencedChunks(reader, content, options)) {
      options.onLook?.();
      if (!(await this.#has(id, options))) return false;
    }
    return true;
  }

  /** Stores the packs and makes them known to others: what was stored so far is not sent again after a crash. */
  async flush(options: CallOptions = {}): Promise<void> {
    this.#assertOpen();
    await this.#packs.flush(options);
    await this.#indexStored(options);
  }

  /**
   * Ends this attempt as `abandon` does, and has what arrived be found by the next one. What keeps it from that, and
   * what had failed before, is no failure of the end; a commit that has happened is left as it is.
   */
  async suspend(options: CallOptions = {}): Promise<void> {
    if (this.#state === 'committed') return;
    await this.#saveArrived(options);
    await this.abandon(options);
  }

  /**
   * Gives the backup up for good: no backup of this id can be committed any more, unless it has been. What is stored
   * already stays for the next one, or for a collection.
   */
  async abandon(options: CallOptions = {}): Promise<'abandoned' | 'committed'> {
    if (this.#state === 'committed') throw stateError('the backup is committed');
    this.#state = 'failed';
    await this.#packs.settled(options.signal);
    await this.#indexing;
    // Before the announcement goes: without one, and without a fence, somebody who still writes would be in danger.
    const outcome = await fenceBackup(this.#context, this, options);
    await this.#context.backend.delete(sessionName(this.backupId, this.attempt), options);
    return outcome === 'fenced' ? 'abandoned' : 'committed';
  }

  /**
   * Makes known whatever was stored, also where the store takes no more packs: an index takes little. What fails here
   * is sent again by the next attempt, and costs nothing else; what has ended the work the caller knows.
   */
  async #saveArrived(options: CallOptions): Promise<void> {
    // What has ended the work has ended packs on their way, too: the first flush tells that, the second sends them.
    const flush = async (): Promise<void> => this.#packs.flush(options);
    await flush()
      .catch(flush)
      .catch(() => undefined);
    await this.#packs.settled(options.signal);
    await this.#indexStored(options).catch(() => undefined);
  }

  /** One at a time, or packs would be named twice. */
  #indexStored(options: CallOptions): Promise<void> {
    const made = this.#indexing.then(() => this.#makeIndexes(options));
    this.#indexing = made.catch(() => undefined);
    return made;
  }

  async #makeIndexes(options: CallOptions): Promise<void> {
    for (const packs of indexGroups(this.#newPacks.slice(this.#packsIndexed), this.#indexBytes)) {
      const id = await putIndex(this.#context, encodeIndex({ supersedes: [], packs }), options);
      this.#newIndexes.push(indexName(id));
      this.#packsIndexed += packs.length;
      for (const pack of packs) this.#unindexedBytes -= indexedBytes(pack);
    }
  }

  async #has(id: Buffer, options: CallOptions): Promise<boolean> {
    if (this.#pending.has(id.toString('latin1'))) return true;
    for (const { pack } of this.#index.find(id))
      if (this.#isUsable(pack) && (await this.#isThere(pack, options))) return true;
    return false;
  }

  /** An index may name a pack that is gone; that costs a look, and must not cost the backup. */
  async #isThere(pack: number, options: CallOptions): Promise<boolean> {
    for (let look = this.#looks.get(pack); !this.#seen.has(pack) && look !== undefined; ) {
      // Of somebody else, whose call it is that may be cancelled.
      const there = await look.catch(() => null);
      options.signal?.throwIfAborted();
      if (there !== null) return there;
      look = this.#looks.get(pack);
    }
    if (this.#seen.has(pack)) return true;
    const look = this.#look(pack, options).finally(() => this.#looks.delete(pack));
    this.#looks.set(pack, look);
    return look;
  }

  async #look(pack: number, options: CallOptions): Promise<boolean> {
    const { id, sizeBytes } = this.#index.pack(pack);
    const isThere = (await this.#context.backend.size(packName(id), options)) === sizeBytes;
    if (isThere) this.#seen.add(pack);
    else this.#excluded.add(id.toString('hex'));
    return isThere;
  }

  #isUsable(pack: number): boolean {
    return !this.#excluded.has(this.#index.pack(pack).id.toString('hex'));
  }

  /** Adds a chunk to a pack, unless it is somewhere already. */
  async #store(id: Buffer, domain: ChunkDomain, content: Buffer, options: CallOptions): Promise<void> {
    const kind = packKindOf(domain.type);
    for (;;) {
      const stored = this.#newPacks.length;
      if (await this.#has(id, options)) return;
      if (!this.#packs.hasRoom(kind)) await this.#packs.room(kind, options);
      // As long as no pack was stored since, somebody who had the same chunk meanwhile is among the pending.
      else if (stored === this.#newPacks.length) break;
    }
    if (this.#pending.has(id.toString('latin1'))) return;
    this.#pending.add(id.toString('latin1'));
    const newBytes = await this.#packs.add(id, domain, content, options);
    this.#statistics = {
      ...this.#statistics,
      newChunks: this.#statistics.newChunks + 1,
      newBytes: this.#statistics.newBytes + newBytes,
    };
  }

  /** A pack is in the store. Only then its chunks are known to be there. */
  #onStored(pack: IndexedPack): void {
    this.#newPacks.push(pack);
    this.#unindexedBytes += indexedBytes(pack);
    this.#index.addPack(pack);
    for (const entry of pack.entries) this.#pending.delete(entry.id.toString('latin1'));
  }

  /**
   * Invariants 1 and 5. What is not there any more is read from elsewhere and stored again; where that is impossible the
   * backup ends. Marks that were made since the session began do not matter: who made them waits for this session.
   * Returns the packs that the backup is read from.
   */
  async #checkReferences(manifest: BackupManifest, options: CommitOptions): Promise<ReadonlySet<number>> {
    const reader = new ChunkReader(this.#context, this.#index);
    for (;;) {
      const contents = contentsOf(manifest).map(({ content }) => content);
      const result = await checkReferences(this.#context, this.#index, reader, contents, {
        ...options,
        isUsable: (pack) => this.#isUsable(pack),
      });
      for (const pack of result.gonePacks) this.#excluded.add(pack.toString('hex'));
      if (result.lostChunks.length === 0) return result.packs;
      for (const { id, domain } of result.lostChunks) {
        if (await this.#has(id, options)) continue;
        if (domain.type === 'data' && this.#context.keys.isWriter) throw lostToWriter(this.backupId);
        await this.#store(id, domain, await reader.read(id, domain, options), options);
      }
      await this.flush(options);
    }
  }

  async #publish(manifest: BackupManifest, bytes: Buffer, options: CallOptions): Promise<BackupManifest> {
    const name = manifestName(this.backupId, this.attempt);
    if ((await this.#context.backend.size(deletionName(this.backupId), options)) !== null)
      throw fenced(this.backupId, 'it was deleted');
    const result = await putObject(this.#context, 'manifest', name, bytes, options);
    if (result !== 'taken') return manifest;
    const there = await getObject(this.#context, name, ['manifest', 'fence'], options);
    if (there === null || there.type === 'fence') throw fenced(this.backupId, 'somebody took it for dead');
    // The same job has committed before it crashed; the first commit is the one that counts.
    return decodeManifest(there.content, name);
  }

  /** Why this backup can never exist; `null` also when that cannot be found out, and what failed first says more. */
  async #fence(options: CallOptions): Promise<RepositoryError | null> {
    try {
      await assertPossible(this.#context, this, options);
      return null;
    } catch (error) {
      return error instanceof RepositoryError && error.code === 'BACKUP_FENCED' ? error : null;
    }
  }

  async #takeBack(options: CallOptions): Promise<unknown> {
    try {
      await this.#context.backend.delete(sessionName(this.backupId, this.attempt), options);
      return null;
    } catch (error) {
      // The backup is committed and must not be reported as failed; a collection finds its manifest.
      return error;
    }
  }

  #assertOpen(): void {
    if (this.#state !== 'open') throw stateError(`the session is ${this.#state}`);
  }
}

/** Throws BACKUP_FENCED when this attempt can never be committed. */
async function assertPossible(
  context: RepositoryContext,
  { backupId, attempt }: Attempt,
  call: CallOptions,
): Promise<void> {
  if ((await context.backend.size(deletionName(backupId), call)) !== null)
    throw fenced(backupId, 'it was deleted');
  const there = await getObject(context, manifestName(backupId, attempt), ['manifest', 'fence'], call);
  if (there?.type === 'fence') throw fenced(backupId, 'it was given up, or somebody took it for dead');
}

function fenced(backupId: string, why: string): RepositoryError {
  return new RepositoryError('BACKUP_FENCED', `backup ${backupId} can never be committed: ${why}`, {
    hint: 'back the machine up again: stillpoint backup MACHINE',
  });
}

/** It would have to read the chunk from another pack; the next backup has it once more where it comes from. */
function lostToWriter(backupId: string): RepositoryError {
  return new RepositoryError(
    'CHUNK_MISSING',
    `a pack that backup ${backupId} shares with others has gone meanwhile, and this host may not read what was in it`,
    { hint: 'back the machine up again: stillpoint backup MACHINE', retryable: true },
  );
}

function stateError(why: string): RepositoryError {
  return new RepositoryError('SESSION_STATE_INVALID', why);
}
