import { randomUUID } from 'node:crypto';
import { documentPath } from '../../common/documents.ts';
import { StorageError } from '../errors.ts';
import { assertObjectName, type CallOptions, isObjectName } from './backend.ts';
import type { DisplacedObject, LockStatus, ObjectLock } from './objectLock.ts';
import type { S3Bucket, S3Status } from './s3Bucket.ts';
import { S3Call, type S3Patience } from './s3Calls.ts';
import { isAbsence, statusOf } from './s3Failure.ts';
import type { S3Version, S3Versions, VersionPlace } from './s3Versions.ts';

/** Below the prefix. Each trial makes two objects of its own, one of which stays until the next trial. */
const probePrefix = 'probe/lock-';
/** So long the object of a trial is under retention at first; longer than clocks differ. */
const probeMs = 120_000;

/** What the requests need; all keys begin with the prefix. */
interface S3LockParts {
  readonly bucket: S3Bucket;
  readonly versions: S3Versions;
  readonly prefix: string;
  readonly patience: S3Patience;
}

/**
 * Object lock of an S3 server (docs/decisions/0034-object-lock.md). A bucket that has it keeps versions: a plain
 * deletion only puts a marker on top of them, and storing under a taken name takes a version more.
 */
export class S3ObjectLock implements ObjectLock {
  readonly #bucket: S3Bucket;
  readonly #versions: S3Versions;
  readonly #prefix: string;
  readonly #patience: S3Patience;

  constructor({ bucket, versions, prefix, patience }: S3LockParts) {
    this.#bucket = bucket;
    this.#versions = versions;
    this.#prefix = prefix;
    this.#patience = patience;
  }

  async isEnforced(options?: CallOptions): Promise<boolean> {
    return this.#run('finding out whether the server locks objects', options, async (call) => {
      await this.#removeOldProbes(call);
      const key = this.#key(`${probePrefix}${randomUUID()}`);
      const versionId = await this.#putProbe(call, key, new Date(Date.now() + probeMs));
      return versionId !== null && (await this.#isHeld(call, key, versionId));
    });
  }

  async status(name: string, options?: CallOptions): Promise<LockStatus | null> {
    const key = this.#key(name);
    const status = await this.#run(`looking at ${name}`, options, (call) => this.#look(call, key));
    if (status === null) return null;
    return { sizeBytes: status.sizeBytes, retainedUntil: status.retainedUntil ?? null };
  }

  async retain(name: string, until: Date, options?: CallOptions): Promise<void> {
    const key = this.#key(name);
    await this.#run(`locking ${name}`, options, async (call) => {
      try {
        await call.request(async (signal) => this.#versions.retain(key, until, signal));
      } catch (error) {
        // Refused: it is not there, or is under retention for longer.
        const there = await this.#look(call, key);
        if (there === null)
          throw new StorageError('FILE_MISSING', `${name} is not there any more`, { cause: error });
        if (there.retainedUntil === undefined || there.retainedUntil < until) throw error;
      }
    });
  }

  async remove(name: string, options?: CallOptions): Promise<void> {
    const key = this.#key(name);
    await this.#run(`deleting ${name}`, options, async (call) => {
      // The oldest first: it is the one that was stored under retention.
      for (const version of (await this.#versionsOf(call, key)).toReversed()) {
        if ((await this.#delete(call, version)) === 'deleted') continue;
        const { retainedUntil } = (await this.#look(call, key, version.versionId)) ?? {};
        if (retainedUntil !== undefined && retainedUntil.getTime() > Date.now())
          throw lockedError(name, retainedUntil);
        throw deniedError(this.#patience, `deleting a version of ${name} is refused`);
      }
    });
  }

  async hide(name: string, options?: CallOptions): Promise<void> {
    const key = this.#key(name);
    await this.#run(`hiding ${name}`, options, (call) =>
      call.request((signal) => this.#versions.mark(key, signal)),
    );
  }

  async *displaced(prefix: string, options?: CallOptions): AsyncIterable<DisplacedObject> {
    const what = `listing the versions of ${prefix}`;
    for await (const versions of this.#byKey(this.#key(prefix.slice(0, -1)) + '/', what, options)) {
      const found = await this.#run(what, options, (call) => this.#displacedIn(call, versions));
      if (found !== null && isObjectName(found.name)) yield found;
    }
  }

  async bringBack({ name, versionId, retainedUntil }: DisplacedObject, options?: CallOptions): Promise<void> {
    const key = this.#key(name);
    await this.#run(`bringing back ${name}`, options, async (call) => {
      const versions = await this.#versionsOf(call, key);
      const wanted = versions.find((version) => version.versionId === versionId);
      if (wanted === undefined)
        throw new StorageError('FILE_MISSING', `version ${versionId} of ${name} is not there any more`);
      const newest = versions.find(({ isMarker }) => !isMarker);
      // Nothing is lost with a marker. What was stored on top of it stays, below a copy.
      if (newest?.etag === wanted.etag) {
        for (const version of versions) if (version.isMarker) await this.#delete(call, version);
      } else await this.#copyToTop(call, wanted, retainedUntil);
    });
  }

  async #copyToTop(call: S3Call, { key, versionId }: S3Version, retainUntil: Date): Promise<void> {
    const { objectBytesMax } = this.#patience.limits;
    const wanted = { offsetBytes: 0, lengthBytes: objectBytesMax, isWhole: true };
    const status = await this.#look(call, key, versionId);
    const body = await call.request((signal) => this.#bucket.read(key, wanted, signal, versionId));
    if (body === null) throw new StorageError('FILE_MISSING', `version ${versionId} of ${key} has gone`);
    const isPast = retainUntil.getTime() <= Date.now();
    const options = {
      ifFree: false,
      token: status?.token ?? '',
      ...(isPast ? {} : { retainUntil }),
    };
    await call.request((signal) => this.#bucket.put(key, body, options, signal));
  }

  /** Stores an object under retention; `null` where the server does not even take it as one. Returns its version. */
  async #putProbe(call: S3Call, key: string, retainUntil: Date): Promise<string | null> {
    const body = Buffer.from('made to find out whether this server locks objects; never read\n');
    const isTaken = await call.request(async (signal) => {
      try {
        await this.#bucket.put(key, body, { ifFree: false, token: 'probe', retainUntil }, signal);
        return true;
      } catch (error) {
        // The bucket was made without, or the server does not know it.
        if ([400, 501].includes(statusOf(error) ?? 0)) return false;
        throw error;
      }
    });
    const status = isTaken ? await this.#look(call, key) : null;
    return status?.retainedUntil === undefined ? null : (status.versionId ?? null);
  }

  /** Whether a version stays that is under retention, and its retention can be made longer, and not shorter. */
  async #isHeld(call: S3Call, key: string, versionId: string): Promise<boolean> {
    await this.#requireDeletionRights(call);
    const isThere = async (): Promise<S3Status | null> => this.#look(call, key, versionId);
    if ((await this.#delete(call, { key, versionId })) === 'deleted') return false;
    const before = (await isThere())?.retainedUntil;
    if (before === undefined) return false;
    const later = new Date(before.getTime() + probeMs / 2);
    await call.request((signal) => this.#versions.retain(key, later, signal));
    await this.#tryToShorten(call, key, before);
    const after = (await isThere())?.retainedUntil;
    return after !== undefined && after.getTime() >= Math.floor(later.getTime() / 1000) * 1000;
  }

  /** Which is to be refused; whether it was, the retention tells. */
  async #tryToShorten(call: S3Call, key: string, until: Date): Promise<void> {
    await call.request(async (signal) => {
      try {
        await this.#versions.retain(key, until, signal);
      } catch (error) {
        const status = statusOf(error) ?? 0;
        if (status < 400 || status >= 500) throw error;
      }
    });
  }

  /** Without the right to delete a version nobody could tell a lock from its lack. */
  async #requireDeletionRights(call: S3Call): Promise<void> {
    const key = this.#key(`${probePrefix}${randomUUID()}`);
    const body = Buffer.from('made to be deleted\n');
    const options = { ifFree: false, token: 'probe' };
    await call.request((signal) => this.#bucket.put(key, body, options, signal));
    for (const version of await this.#versionsOf(call, key))
      if ((await this.#delete(call, version)) === 'refused')
        throw deniedError(this.#patience, 'deleting a version of an object without retention is refused');
  }

  async #removeOldProbes(call: S3Call): Promise<void> {
    // Those that are still under retention stay for the next trial.
    for (const version of (await this.#page(call, this.#key(probePrefix))).versions)
      await this.#delete(call, version);
  }

  /** The version under retention that a read of a key does not find. @param versions of that key */
  async #displacedIn(call: S3Call, versions: readonly S3Version[]): Promise<DisplacedObject | null> {
    const latest = versions.find(({ isLatest }) => isLatest);
    if (latest === undefined || versions.length === 1) return null;
    // Names are given once, so the first one that was stored under retention is ours.
    for (const { key, versionId, etag, isMarker } of versions.toReversed()) {
      if (isMarker) continue;
      const { retainedUntil } = (await this.#look(call, key, versionId)) ?? {};
      if (retainedUntil === undefined) continue;
      if (!latest.isMarker && latest.etag === etag) return null;
      const how = latest.isMarker ? 'deleted' : 'overwritten';
      return { name: key.slice(this.#prefix.length), how, retainedUntil, versionId };
    }
    return null;
  }

  /** Every version and marker of one key. */
  async #versionsOf(call: S3Call, key: string): Promise<readonly S3Version[]> {
    const found: S3Version[] = [];
    let from: VersionPlace | undefined;
    do {
      const page = await this.#page(call, key, from);
      found.push(...page.versions.filter((version) => version.key === key));
      // Longer keys come after it.
      from = page.next?.key === key ? page.next : undefined;
    } while (from !== undefined);
    return ordered(found);
  }

  /** The versions of each key below a prefix. */
  async *#byKey(keyPrefix: string, what: string, options?: CallOptions): AsyncIterable<readonly S3Version[]> {
    let from: VersionPlace | undefined;
    let rest: readonly S3Version[] = [];
    do {
      const start = from;
      const page = await this.#run(what, options, (call) => this.#page(call, keyPrefix, start));
      const groups = Map.groupBy([...rest, ...page.versions], ({ key }) => key);
      // The last key of a page may go on with the next one.
      rest = page.next === undefined ? [] : (groups.get(page.next.key) ?? []);
      for (const [key, versions] of groups) if (key !== page.next?.key) yield ordered(versions);
      from = page.next;
    } while (from !== undefined);
  }

  #page(
    call: S3Call,
    keyPrefix: string,
    from?: VersionPlace,
  ): Promise<{ readonly versions: readonly S3Version[]; readonly next: VersionPlace | undefined }> {
    const { pageNames } = this.#patience.limits;
    return call.request((signal) => this.#versions.listPage(keyPrefix, from, pageNames, signal));
  }

  #delete(call: S3Call, version: Pick<S3Version, 'key' | 'versionId'>): Promise<'deleted' | 'refused'> {
    return call.request((signal) => this.#versions.delete(version, signal));
  }

  #look(call: S3Call, key: string, versionId?: string): Promise<S3Status | null> {
    return call.request(async (signal) => {
      try {
        return await this.#bucket.look(key, signal, versionId);
      } catch (error) {
        // A version that has gone, or the marker of a deletion.
        const isGone = error instanceof Error && ['NoSuchVersion', 'MethodNotAllowed'].includes(error.name);
        if (isGone || isAbsence(error)) return null;
        throw error;
      }
    });
  }

  #run<T>(what: string, options: CallOptions | undefined, work: (call: S3Call) => Promise<T>): Promise<T> {
    return S3Call.run(what, this.#patience, options ?? {}, work);
  }

  #key(name: string): string {
    assertObjectName(name);
    return this.#prefix + name;
  }
}

/** Markers, then contents as the server gives them, newest first: times may be whole seconds and tell no order. */
function ordered(versions: readonly S3Version[]): readonly S3Version[] {
  return [...versions.filter(({ isMarker }) => isMarker), ...versions.filter(({ isMarker }) => !isMarker)];
}

function lockedError(name: string, until: Date): StorageError {
  return new StorageError('OBJECT_LOCKED', `${name} is locked until ${until.toISOString()}`, {
    hint: `nobody can delete it before ${until.toISOString()}`,
  });
}

function deniedError({ place }: S3Patience, what: string): StorageError {
  return new StorageError('STORAGE_DENIED', `${what} at ${place.location}`, {
    hint: `give ${place.accessKeyId} the rights that ${documentPath('docs/OBJECT-LOCK.md')} lists, s3:DeleteObjectVersion among them`,
  });
}
