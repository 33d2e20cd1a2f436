import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, link, lstat, mkdir, open, readdir, rm, stat, statfs } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { fsyncDirectory, fsyncFile, makeDirectoryDurable, removeUnfinished } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { inStorage, StorageError } from '../errors.ts';
import {
  assertObjectName,
  type Backend,
  type CallOptions,
  isObjectName,
  type ListedObject,
  type ReadOptions,
} from './backend.ts';
import { writeNewFile } from './newFile.ts';

/** Where files gather that are not complete; never listed. */
const temporaryDirectory = 'tmp';

/** Room that large objects must leave: on a file system without any nothing could be deleted, which takes a record. */
export interface Reserve {
  /** Objects whose names begin so may not use it. */
  readonly notForPrefix: string;
  /** At most; it is one hundredth of a small file system. */
  readonly bytesMax: number;
  /** What to type to make room. */
  readonly hint: string;
}

/**
 * Objects as files below a directory, on any file system with hard links.
 *
 * A file is written under a temporary name, fsynced, and given its name by link(2), which fails when the name is
 * taken; then the directory is fsynced. rename(2) would replace what is there.
 */
export class FileBackend implements Backend {
  readonly location: string;
  readonly objectLock = null;
  readonly #reserve: Reserve | undefined;
  /** Directories that were seen to be durable. */
  readonly #directories = new Set<string>();
  /** Of objects that are being written, which the reserve is kept from. */
  #underWayBytes = 0;

  /** @param root an absolute path; the directory must be there, or `prepare` makes it */
  constructor(root: string, options: { readonly reserve?: Reserve | undefined } = {}) {
    this.location = root;
    this.#reserve = options.reserve;
  }

  /**
   * Looks whether there is room beside the reserve, and beside what is on its way, until that is disposed of.
   * @throws StorageError STORAGE_FULL
   */
  async #keepReserve(name: string, parts: readonly Buffer[]): Promise<Disposable> {
    if (this.#reserve === undefined || !name.startsWith(this.#reserve.notForPrefix))
      return { [Symbol.dispose]: () => undefined };
    const { bavail, blocks, bsize } = await statfs(this.location);
    const reserveBytes = Math.min(this.#reserve.bytesMax, Math.floor((blocks * bsize) / 100));
    const sizeBytes = parts.reduce((sum, part) => sum + part.length, 0);
    if (bavail * bsize >= reserveBytes + this.#underWayBytes + sizeBytes) {
      this.#underWayBytes += sizeBytes;
      return { [Symbol.dispose]: () => void (this.#underWayBytes -= sizeBytes) };
    }
    throw new StorageError(
      'STORAGE_FULL',
      `${this.location} has ${formatBytes(bavail * bsize)} free, of which ${formatBytes(reserveBytes)} are kept for making room`,
      { hint: this.#reserve.hint },
    );
  }

  /** Makes the directory. A storage whose file system is not mounted must not come into being by accident. */
  async prepare(): Promise<void> {
    await inStorage(this.location, `making ${this.location}`, async () => {
      await makeDirectoryDurable(this.location, 0o700);
    });
  }

  async create(
    name: string,
    parts: readonly Buffer[],
    options: CallOptions = {},
  ): Promise<'created' | 'exists'> {
    const path = this.#path(name);
    return this.#run(`creating ${name}`, options, async () => {
      using _ = await this.#keepReserve(name, parts);
      await this.#makeDirectory(join(this.location, temporaryDirectory));
      await this.#makeDirectory(dirname(path));
      const temporary = join(this.location, temporaryDirectory, randomBytes(16).toString('hex'));
      let outcome: 'created' | 'exists';
      try {
        await writeNewFile(temporary, parts);
        options.signal?.throwIfAborted();
        outcome = await publish(temporary, path);
      } catch (error) {
        await removeUnfinished(temporary);
        throw error;
      }
      await rm(temporary, { force: true });
      return outcome;
    });
  }

  /** By link(2), on every file system that has it. */
  createsExclusively(): Promise<boolean> {
    return Promise.resolve(true);
  }

  async read(name: string, options: ReadOptions = {}): Promise<Buffer | null> {
    const path = this.#path(name);
    return this.#run(`reading ${name}`, options, async () => {
      const file = await openIfThere(path);
      if (file === null) return this.#missing();
      try {
        if (options.range === undefined) return await file.readFile();
        const { offsetBytes, lengthBytes } = options.range;
        return await readUpTo(file, offsetBytes, lengthBytes);
      } finally {
        await file.close();
      }
    });
  }

  async size(name: string, options: CallOptions = {}): Promise<number | null> {
    const path = this.#path(name);
    return this.#run(`looking at ${name}`, options, async () => {
      try {
        return (await lstat(path)).size;
      } catch (error) {
        if (isErrno(error, 'ENOENT')) return this.#missing();
        throw error;
      }
    });
  }

  async *list(prefix: string, options: CallOptions = {}): AsyncIterable<ListedObject> {
    if (!prefix.endsWith('/')) throw new StorageError('NAME_INVALID', `${prefix} does not end in a slash`);
    assertObjectName(prefix.slice(0, -1));
    const pending = [prefix.slice(0, -1)];
    for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
      const name = directory;
      const found = await this.#run(`listing ${prefix}`, options, async () => this.#entries(name));
      pending.push(...found.directories);
      yield* found.objects;
    }
  }

  async delete(name: string, options: CallOptions = {}): Promise<void> {
    const path = this.#path(name);
    await this.#run(`deleting ${name}`, options, async () => {
      await rm(path, { force: true });
      try {
        await fsyncDirectory(dirname(path));
      } catch (error) {
        if (!isErrno(error, 'ENOENT')) throw error;
        await this.#missing();
      }
    });
  }

  /**
   * Removes what interrupted calls left, if it was last written before a time. A call that is still at it fails
   * afterwards and leaves nothing: these files have no names that count. Returns how many.
   */
  async removeLeftovers(before: Date): Promise<number> {
    const directory = join(this.location, temporaryDirectory);
    return this.#run('removing leftovers', {}, async () => {
      let count = 0;
      for (const name of await namesIn(directory)) {
        const path = join(directory, name);
        if ((await lstat(path)).mtime >= before) continue;
        await rm(path, { force: true });
        count++;
      }
      return count;
    });
  }

  async #entries(
    directory: string,
  ): Promise<{ readonly directories: readonly string[]; readonly objects: readonly ListedObject[] }> {
    const names = await namesIn(join(this.location, directory));
    if (names.length === 0) await this.#missing();
    const directories: string[] = [];
    const objects: ListedObject[] = [];
    for (const entry of names) {
      const name = `${directory}/${entry}`;
      if (!isObjectName(name)) continue;
      try {
        const status = await lstat(join(this.location, name));
        if (status.isDirectory()) directories.push(name);
        else if (status.isFile()) objects.push({ name, sizeBytes: status.size });
      } catch (error) {
        // Deleted since.
        if (!isErrno(error, 'ENOENT')) throw error;
      }
    }
    return { directories, objects };
  }

  /** Nothing is there: because it is not, or because the file system is not mounted? */
  async #missing(): Promise<null> {
    await stat(this.location);
    return null;
  }

  /** Makes a directory, and those above it, durably; never the place itself, which may not be mounted. */
  async #makeDirectory(path: string): Promise<void> {
    if (this.#directories.has(path) || path === this.location) return;
    const above = dirname(path);
    await this.#makeDirectory(above);
    try {
      await mkdir(path, { mode: 0o700 });
    } catch (error) {
      if (!isErrno(error, 'EEXIST')) throw error;
    }
    // Also where it is there: its maker may have been killed before this.
    await fsyncDirectory(above);
    this.#directories.add(path);
  }

  #path(name: string): string {
    assertObjectName(name);
    if (name === temporaryDirectory || name.startsWith(`${temporaryDirectory}/`))
      throw new StorageError('NAME_INVALID', `${name} is for files on their way`);
    return join(this.location, name);
  }

  async #run<T>(what: string, options: CallOptions, operation: () => Promise<T>): Promise<T> {
    options.signal?.throwIfAborted();
    return inStorage(this.location, what, async () => {
      try {
        return await operation();
      } catch (error) {
        if (!isErrno(error, 'ENOENT')) throw error;
        throw new StorageError('STORAGE_UNREACHABLE', `${what}: ${this.location} is not there`, {
          cause: error,
          hint: `findmnt -T ${this.location}`,
          retryable: true,
        });
      }
    });
  }
}

async function publish(temporary: string, path: string): Promise<'created' | 'exists'> {
  try {
    await link(temporary, path);
  } catch (error) {
    if (!isErrno(error, 'EEXIST')) throw linkError(error, path);
    // Whoever made it may have died before its own fsyncs, and now we promise that it stays.
    await fsyncFile(path);
    await fsyncDirectory(dirname(path));
    return 'exists';
  }
  await fsyncDirectory(dirname(path));
  return 'created';
}

/** Some file systems know no hard links, and say so in several ways. */
function linkError(error: unknown, path: string): unknown {
  // Node.js calls EOPNOTSUPP so.
  if (!['EPERM', 'ENOTSUP', 'ENOSYS', 'EMLINK'].some((code) => isErrno(error, code))) return error;
  return new StorageError('STORAGE_FAILED', `no hard link can be made at ${path}`, {
    cause: error,
    hint: 'a repository needs a file system with hard links (not vfat or exfat)',
  });
}

async function openIfThere(path: string): Promise<FileHandle | null> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return null;
    throw error;
  }
}

/** Of more than this it is worth to know whether it is there. */
const lookFirstBytes = 1024 * 1024;

async function readUpTo(file: FileHandle, offsetBytes: number, wantedBytes: number): Promise<Buffer> {
  // Who asks for much asks for all that there is, as a rule, up to a limit.
  const isMuch = wantedBytes > lookFirstBytes;
  const lengthBytes = isMuch
    ? Math.min(wantedBytes, Math.max(0, (await file.stat()).size - offsetBytes))
    : wantedBytes;
  // What is not filled is not given out.
  const target = Buffer.allocUnsafeSlow(lengthBytes);
  let filled = 0;
  while (filled < lengthBytes) {
    const { bytesRead } = await file.read(target, filled, lengthBytes - filled, offsetBytes + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return target.subarray(0, filled);
}

/** Names in a directory; none when it is not there. */
async function namesIn(path: string): Promise<readonly string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}
