import { documentPath } from '../../common/documents.ts';
import type { Backend, CallOptions, CreateOptions, ListedObject, ReadOptions } from '../backends/backend.ts';
import type { LockStatus, ObjectLock } from '../backends/objectLock.ts';
import { StorageError } from '../errors.ts';
import { RepositoryError } from './errors.ts';
import { prefixes } from './names.ts';
import { marginMs, type Retention } from './retention.ts';

/** What all backups share: it is kept for the period and the slack (docs/FORMAT.md, "Object lock"). */
const sharedPrefixes = [prefixes.config, prefixes.keys, prefixes.packs, prefixes.indexes] as const;
/** What is of one backup, and of the period alone. */
const ownPrefixes = [prefixes.manifests, prefixes.hosts] as const;

/** Prefixes of objects that are stored under retention. */
export const lockedPrefixes: readonly string[] = [...sharedPrefixes, ...ownPrefixes];

/** The request that makes a backup may be repeated for so long before it gets through. */
const requestMs = 3_600_000;

/** Questions at a time; the store has bounds of its own. */
const questionsAtOnce = 8;

export interface CoverOptions extends CallOptions {
  readonly onLook?: (() => void) | undefined;
  /** Somebody may have taken it away since it was listed, and rightly so. */
  readonly mayBeGone?: boolean | undefined;
}

/**
 * The place of a repository whose store locks objects: what is created there is under retention from its first moment
 * on, and what is deleted goes with all its versions, or not at all (`OBJECT_LOCKED`).
 */
export class LockedStore implements Backend {
  readonly location: string;
  readonly objectLock: ObjectLock;
  readonly #backend: Backend;
  readonly #retention: Retention | null;

  /** @param retention of what is written from now on; `null`: none, but what others have locked is respected */
  constructor(backend: Backend, objectLock: ObjectLock, retention: Retention | null) {
    this.location = backend.location;
    this.objectLock = objectLock;
    this.#backend = backend;
    this.#retention = retention;
  }

  create(name: string, parts: readonly Buffer[], options?: CreateOptions): Promise<'created' | 'exists'> {
    return this.#backend.create(name, parts, { ...options, retainUntil: this.#retainUntil(name) });
  }

  createsExclusively(options?: CallOptions): Promise<boolean> {
    return this.#backend.createsExclusively(options);
  }

  read(name: string, options?: ReadOptions): Promise<Buffer | null> {
    return this.#backend.read(name, options);
  }

  size(name: string, options?: CallOptions): Promise<number | null> {
    return this.#backend.size(name, options);
  }

  list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    return this.#backend.list(prefix, options);
  }

  delete(name: string, options?: CallOptions): Promise<void> {
    return this.objectLock.remove(name, options);
  }

  /** What is known of an object; `null` when there is none. */
  status(name: string, options?: CallOptions): Promise<LockStatus | null> {
    return this.objectLock.status(name, options);
  }

  /** Until when an object cannot be deleted, if that is in the future. */
  endOf({ retainedUntil }: LockStatus): Date | null {
    return retainedUntil !== null && retainedUntil.getTime() > this.#now() ? retainedUntil : null;
  }

  /** Those of some objects that cannot be deleted now, each with the end of its retention. */
  async locked(names: Iterable<string>, options: CallOptions = {}): Promise<ReadonlyMap<string, Date>> {
    const found = new Map<string, Date>();
    await forEach(names, async (name) => {
      const status = await this.status(name, options);
      const until = status === null ? null : this.endOf(status);
      if (until !== null) found.set(name, until);
    });
    return found;
  }

  /**
   * Has objects that a backup is about to refer to be under retention for the whole period from now on. One that is so
   * already is only looked at. Does nothing where nothing is to be locked.
   *
   * Rejects with CHUNK_MISSING for one that has gone, unless that may be, and with OBJECT_LOCK_NOT_ENFORCED where the store says yes and
   * does nothing.
   */
  async cover(names: Iterable<string>, options: CoverOptions = {}): Promise<void> {
    const retention = this.#retention;
    if (retention === null) return;
    await forEach(names, async (name) => {
      options.onLook?.();
      try {
        await this.#coverOne(name, retention, options);
      } catch (error) {
        const isGone = error instanceof RepositoryError && error.code === 'CHUNK_MISSING';
        if (!isGone || options.mayBeGone !== true) throw error;
      }
    });
  }

  async #coverOne(name: string, retention: Retention, options: CallOptions): Promise<void> {
    const neededMs = this.#now() + retention.periodMs + marginMs(retention);
    if (await this.#isKept(name, neededMs, options)) return;
    const until = new Date(this.#now() + retention.periodMs + retention.slackMs);
    try {
      await this.objectLock.retain(name, until, options);
    } catch (error) {
      if (error instanceof StorageError && error.code === 'FILE_MISSING') throw goneError(name, error);
      throw error;
    }
    if (!(await this.#isKept(name, neededMs, options)))
      throw notEnforced(this.location, `${name} stays unlocked`);
  }

  async #isKept(name: string, untilMs: number, options: CallOptions): Promise<boolean> {
    const status = await this.status(name, options);
    if (status === null) throw goneError(name);
    return status.retainedUntil !== null && status.retainedUntil.getTime() >= untilMs;
  }

  #retainUntil(name: string): Date | undefined {
    if (this.#retention === null) return undefined;
    const { periodMs, slackMs } = this.#retention;
    const isShared = sharedPrefixes.some((prefix) => name.startsWith(prefix));
    if (!isShared && !ownPrefixes.some((prefix) => name.startsWith(prefix))) return undefined;
    // Servers may know whole seconds only.
    return new Date(Math.ceil((this.#now() + periodMs + (isShared ? slackMs : requestMs)) / 1000) * 1000);
  }

  #now(): number {
    return this.#retention?.now?.() ?? Date.now();
  }
}

/** A place as one that locks what is stored; `null` where nothing is locked, such as in a copy on a file system. */
export function lockedStoreOf(backend: Backend, retention: Retention | undefined): LockedStore | null {
  const { objectLock } = backend;
  return objectLock === null ? null : new LockedStore(backend, objectLock, retention ?? null);
}

/** Deletes an object; false while it is under retention: whoever deletes it later comes back. */
export async function deleteUnlessLocked(
  backend: Pick<Backend, 'delete'>,
  name: string,
  options?: CallOptions,
): Promise<boolean> {
  try {
    await backend.delete(name, options);
    return true;
  } catch (error) {
    if (isLocked(error)) return false;
    throw error;
  }
}

/** Whether an object cannot be deleted yet. */
export function isLocked(error: unknown): error is StorageError {
  return error instanceof StorageError && error.code === 'OBJECT_LOCKED';
}

/** The error of a store that is to lock what it keeps, and does not. */
export function notEnforced(location: string, why: string): RepositoryError {
  return new RepositoryError('OBJECT_LOCK_NOT_ENFORCED', `${location} does not lock objects: ${why}`, {
    hint: `make a bucket with object lock on a server that enforces it (${documentPath('docs/OBJECT-LOCK.md')}), or take objectLock out of the configuration`,
  });
}

function goneError(name: string, cause?: unknown): RepositoryError {
  return new RepositoryError('CHUNK_MISSING', `${name} was there, and has gone`, {
    cause,
    hint: 'back the machine up again: stillpoint backup MACHINE',
    retryable: true,
  });
}

/** Does something for each name, some at a time. Rejects with the first failure when those under way have ended. */
async function forEach(names: Iterable<string>, work: (name: string) => Promise<void>): Promise<void> {
  const turns = names[Symbol.iterator]();
  let failure: { readonly error: unknown } | null = null;
  const lane = async (): Promise<void> => {
    for (let next = turns.next(); next.done !== true && failure === null; next = turns.next()) {
      try {
        await work(next.value);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: questionsAtOnce }, lane));
  throwIfFailed(failure);
}

/** Of its own: the compiler does not see that another function has changed the variable. */
function throwIfFailed(failure: { readonly error: unknown } | null): void {
  if (failure !== null) throw failure.error;
}
