import { hostname } from 'node:os';
import { randomUUID } from 'node:crypto';
import type { Throttle } from '../../common/throttle.ts';
import type { Backend, CallOptions } from '../backends/backend.ts';
import { ChunkNamer } from './chunkId.ts';
import { zstdLevelDefault } from './codec.ts';
import { type ChunkWorkers, processWorkers } from './chunkWorkers.ts';
import { ChunkIndex } from './chunkIndex.ts';
import { ChunkReader } from './chunkReader.ts';
import type { ContentReference } from './backupManifest.ts';
import { RepositoryError } from './errors.ts';
import { KeyRing } from './keyRing.ts';
import { type ScryptCost, type Secret } from './keySlot.ts';
import { KeySlots } from './keySlots.ts';
import { deleteUnlessLocked, lockedStoreOf, notEnforced } from './lockedStore.ts';
import { hasConfig, publishConfig, readConfig } from './configCopies.ts';
import { chunkBytesDefault, packBytesDefault } from './limits.ts';
import type { RepositoryContext } from './objects.ts';
import { locksObjects, probeCapabilities } from './probe.ts';
import type { Retention } from './retention.ts';
import {
  configVersion,
  formatConfig,
  parseConfig,
  type RepositoryConfig,
  type UnprovedConfig,
  uuidBytes,
} from './repositoryConfig.ts';
import { attemptAfterFences } from './openSessions.ts';
import { RepositorySession } from './session.ts';
import { StreamReader } from './streamReader.ts';
import { decodeRoot } from './streamRoot.ts';

export interface InitOptions {
  readonly secret: Secret;
  /** Of the first key slot, for people. */
  readonly label: string;
  readonly createdAt: string;
  readonly chunkSizeBytes?: number | undefined;
  readonly packSizeBytes?: number | undefined;
  readonly scryptCost?: ScryptCost | undefined;
  /** Backups are to be locked; not unless told. */
  readonly retention?: Retention | undefined;
}

export interface OpenOptions extends CallOptions {
  /** Threads to work with; those that all of this process share unless told. */
  readonly workers?: ChunkWorkers | undefined;
  /** What is written is to be locked; not unless told. What others have locked is respected in any case. */
  readonly retention?: Retention | undefined;
  /** Of zstd, for the chunks that are written; 2 unless told, 0 does not compress. */
  readonly compressionLevel?: number | undefined;
  /** The name of the storage, for what an error says to type. */
  readonly storage?: string | undefined;
}

/** A repository that is open. See docs/FORMAT.md for what it is and for its invariants. */
export class Repository {
  readonly config: RepositoryConfig;
  readonly slots: KeySlots;
  /** For the modules of this directory. */
  readonly context: RepositoryContext;
  /** As it was opened. */
  readonly #backend: Backend;
  readonly #retention: Retention | undefined;
  #index: Promise<ChunkIndex> | null = null;

  private constructor(
    backend: Backend,
    config: RepositoryConfig,
    keys: KeyRing,
    {
      workers = processWorkers,
      retention,
      compressionLevel = zstdLevelDefault,
      storage = 'NAME',
    }: Omit<OpenOptions, keyof CallOptions>,
  ) {
    this.config = config;
    this.#backend = backend;
    this.#retention = retention;
    const lock = config.capabilities.objectLock === true ? lockedStoreOf(backend, retention) : null;
    this.context = {
      backend: lock ?? backend,
      lock,
      repositoryId: uuidBytes(config.repositoryId),
      keys,
      namer: new ChunkNamer(keys.dedupKey),
      workers,
      compressionLevel,
      storage,
    };
    this.slots = new KeySlots(this.context.backend, config, keys);
  }

  /**
   * Makes a repository in an empty store. The configuration comes last and makes it one.
   *
   * Rejects with REPOSITORY_EXISTS, and with OBJECT_LOCK_NOT_ENFORCED where backups are to be locked and would not be.
   */
  static async init(backend: Backend, options: InitOptions, call: OpenOptions = {}): Promise<Repository> {
    if (await hasConfig(backend, 1, call)) throw existsError(backend);
    const { retention } = options;
    const capabilities = await probeCapabilities(backend, { ...call, wantsLock: retention !== undefined });
    if (capabilities.objectLock === false)
      throw notEnforced(backend.location, 'an object under retention could be deleted, or was not taken');
    const keys = KeyRing.generate();
    const config: RepositoryConfig = {
      format: 'stillpoint-repository',
      formatVersion: configVersion,
      revision: 1,
      repositoryId: randomUUID(),
      createdAt: options.createdAt,
      keyGeneration: keys.newestGeneration,
      requires: [],
      chunkSizeBytes: options.chunkSizeBytes ?? chunkBytesDefault,
      packSizeBytes: options.packSizeBytes ?? packBytesDefault,
      capabilities,
    };
    const repository = new Repository(backend, config, keys, { ...call, retention });
    const { createdAt, label, scryptCost } = options;
    const slotId = await repository.slots.add(options.secret, { label, createdAt, cost: scryptCost }, call);
    const bytes = formatConfig(config, keys);
    // As everybody else will read it: what we could not read must not be made.
    parseConfig(bytes, 1).prove(keys);
    if ((await publishConfig(repository.context.backend, 1, bytes, call)) === 'taken') {
      await deleteUnlessLocked(repository.context.backend, `keys/${slotId}`, call);
      throw existsError(backend);
    }
    return repository;
  }

  /** Rejects with REPOSITORY_NOT_FOUND, REPOSITORY_TOO_NEW, REPOSITORY_DAMAGED, KEY_WRONG. */
  static async open(backend: Backend, secret: Secret, call: OpenOptions = {}): Promise<Repository> {
    const candidates = await readConfig(backend, call);
    if (candidates.length === 0) throw notFoundError(backend);
    let failure: unknown = null;
    for (const unproved of candidates) {
      try {
        const rings = await KeySlots.open(backend, unproved.config.repositoryId, secret, call);
        const { config, ring } = provedBy(rings, unproved);
        return new Repository(backend, config, ring.upTo(config.keyGeneration), call);
      } catch (error) {
        if (!(error instanceof RepositoryError)) throw error;
        failure ??= error;
      }
    }
    throw failure;
  }

  /** Adds a generation to the keys, see `KeySlots.rotate`. Returns the repository as it is from then on. */
  async rotate(
    secrets: readonly { readonly secret: Secret; readonly label: string }[],
    options: { readonly createdAt: string; readonly cost?: ScryptCost | undefined },
    call: CallOptions = {},
  ): Promise<Repository> {
    const keys = this.context.keys.rotated();
    const { backend } = this.context;
    const revision = this.config.revision + 1;
    const config = { ...this.config, revision, keyGeneration: keys.newestGeneration };
    const next = this.#with(config, keys);
    const old = await this.slots.list(call);
    const added: string[] = [];
    for (const { secret, label } of secrets)
      added.push(await next.slots.add(secret, { label, ...options }, call));
    if (added.length === 0)
      throw new RepositoryError('KEY_SLOT_LAST', 'no secret was given for the new keys');
    await next.#publish(call);
    // One that is locked goes on opening what was written before the rotation.
    for (const { slotId } of old) await deleteUnlessLocked(backend, `keys/${slotId}`, call);
    return next;
  }

  /** The same repository, with another configuration. */
  #with(config: RepositoryConfig, keys: KeyRing): Repository {
    const { workers, compressionLevel, storage } = this.context;
    const options = { workers, compressionLevel, storage, retention: this.#retention };
    return new Repository(this.#backend, config, keys, options);
  }

  /** Creates the revision that this configuration is. */
  async #publish(call: CallOptions): Promise<void> {
    const { config } = this;
    const { backend, keys } = this.context;
    const bytes = formatConfig(config, keys);
    if ((await publishConfig(backend, config.revision, bytes, call)) !== 'taken') return;
    throw new RepositoryError('SESSION_STATE_INVALID', 'somebody else changed the configuration meanwhile', {
      hint: 'open the repository again',
      retryable: true,
    });
  }

  /**
   * Looks once more whether the store locks objects, and has the configuration say so where it did not yet: from then on
   * every host that opens the repository knows that what it deletes has versions. Returns what was seen.
   */
  async findLock(call: CallOptions = {}): Promise<boolean> {
    const isEnforced = await locksObjects(this.#backend, call);
    if (!isEnforced || this.config.capabilities.objectLock === true) return isEnforced;
    const capabilities = { ...this.config.capabilities, objectLock: true };
    const config = { ...this.config, revision: this.config.revision + 1, capabilities };
    await this.#with(config, this.context.keys).#publish(call);
    return true;
  }

  /** Throws OBJECT_LOCK_NOT_ENFORCED where what is written is to be locked, and would not be as far as is known. */
  requireLock(): void {
    if (this.#retention === undefined || this.context.lock !== null) return;
    throw new RepositoryError(
      'OBJECT_LOCK_NOT_ENFORCED',
      `${this.#backend.location} is to lock its backups, and was not seen to do so when the repository was made`,
      { hint: `stillpoint storage check ${this.context.storage} finds out whether it does` },
    );
  }

  /** The index, read once. */
  async index(call: CallOptions = {}): Promise<ChunkIndex> {
    this.#index ??= ChunkIndex.load(this.context, call);
    try {
      return await this.#index;
    } catch (error) {
      this.#index = null;
      throw error;
    }
  }

  /** Has the index be read anew: others write, too. */
  forgetIndex(): void {
    this.#index = null;
  }

  /** Begins a backup. Rejects with BACKUP_FENCED, STORE_WEAKENED, OBJECT_LOCK_NOT_ENFORCED. */
  async begin(
    backup: {
      readonly backupId: string;
      readonly jobId?: string | undefined;
      readonly startedAt: string;
      /** Passed before a pack is sent. */
      readonly throttle?: Throttle | undefined;
      /** See `SessionOptions`. */
      readonly indexBytes?: number | undefined;
      /** One that was given up is written once more; unless told that is refused. */
      readonly afterFence?: boolean | undefined;
    },
    call: CallOptions = {},
  ): Promise<RepositorySession> {
    await this.#assertExclusive(call);
    this.requireLock();
    const attempt =
      backup.afterFence === true ? await attemptAfterFences(this.context, backup.backupId, call) : 1;
    return RepositorySession.begin(
      this.context,
      {
        ...backup,
        attempt,
        host: hostname(),
        packSizeBytes: this.config.packSizeBytes,
        loadIndex: async () => {
          this.forgetIndex();
          return this.index(call);
        },
      },
      call,
    );
  }

  /** Others rely on what the configuration says: a collection, on fences that nobody overwrites. */
  async #assertExclusive(call: CallOptions): Promise<void> {
    const { backend } = this.context;
    if (!this.config.capabilities.createExclusive || (await backend.createsExclusively(call))) return;
    throw new RepositoryError(
      'STORE_WEAKENED',
      `${backend.location} does not create objects exclusively any more, as it did when the repository was made`,
      { hint: `look what has changed about the server of ${backend.location}; reading is safe` },
    );
  }

  /** Whether the newest configuration in its place is the one that it was opened with. Rejects as `open`. */
  async isCurrent(call: CallOptions = {}): Promise<boolean> {
    const { repositoryId, revision } = this.config;
    const newest = await readConfig(this.#backend, call);
    return newest.some(({ config }) => config.repositoryId === repositoryId && config.revision === revision);
  }

  /** Looks whether it is still where it was opened. Rejects with REPOSITORY_NOT_FOUND, and what the place says. */
  async requireThere(call: CallOptions = {}): Promise<void> {
    const { backend } = this.context;
    if (!(await hasConfig(backend, 1, call))) throw notFoundError(backend);
  }

  /** Ends threads that have nothing to do. Not closing it does no harm: they end by themselves after some seconds. */
  async close(): Promise<void> {
    await this.context.workers.rest();
  }

  async reader(call: CallOptions = {}): Promise<ChunkReader> {
    return new ChunkReader(this.context, await this.index(call));
  }

  /** The stream that a root belongs to. Rejects with CHUNK_MISSING, REPOSITORY_DAMAGED. */
  async contentOf(root: string, call: CallOptions = {}): Promise<ContentReference> {
    const { chunkSizeBytes } = this.config;
    const id = Buffer.from(root, 'hex');
    const bytes = await (await this.reader(call)).read(id, { type: 'root', chunkSizeBytes }, call);
    return { root, sizeBytes: decodeRoot(bytes, `root ${root}`).sizeBytes, chunkSizeBytes };
  }

  /** Opens a stream of a backup for reading. Rejects with CHUNK_MISSING, REPOSITORY_DAMAGED. */
  async openStream(content: ContentReference, call: CallOptions = {}): Promise<StreamReader> {
    return StreamReader.open(await this.reader(call), content, call);
  }
}

/** The first of some key rings that proves a configuration. Throws REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW. */
function provedBy(
  rings: readonly KeyRing[],
  unproved: UnprovedConfig,
): { readonly config: RepositoryConfig; readonly ring: KeyRing } {
  let failure: unknown = null;
  for (const ring of rings) {
    try {
      return { config: unproved.prove(ring), ring };
    } catch (error) {
      if (!(error instanceof RepositoryError)) throw error;
      failure ??= error;
    }
  }
  throw failure;
}

function notFoundError(backend: Backend): RepositoryError {
  return new RepositoryError('REPOSITORY_NOT_FOUND', `there is no repository at ${backend.location}`, {
    hint: `look whether ${backend.location} is mounted and is the right place`,
  });
}

function existsError(backend: Backend): RepositoryError {
  return new RepositoryError('REPOSITORY_EXISTS', `there is a repository at ${backend.location} already`, {
    hint: 'choose another place; a repository is never overwritten',
  });
}
