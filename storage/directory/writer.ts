import { createHash, randomBytes } from 'node:crypto';
import { lstat, readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { Bandwidth } from '../../common/bandwidth.ts';
import { copyFileDurable, hashFile } from '../../common/copy.ts';
import type { FileDigest, HashResult } from '../../common/copy.ts';
import { isErrno } from '../../common/errors.ts';
import {
  applyOwnership,
  exists,
  fsyncDirectory,
  fsyncFile,
  isTemporaryName,
  makeDirectoryDurable,
  readOwnership,
  removeTree,
  removeUnfinished,
  renameDurable,
  sameFileSystem,
  writeFileDurable,
} from '../../common/files.ts';
import { clusterBytes } from '../../common/qcow2/layout.ts';
import { type Throttle, throttleOf } from '../../common/throttle.ts';
import { formatPointInTime } from '../../common/time.ts';
import type { VolumeSource } from '../../common/volumeSource.ts';
import { dropLibvirtLabels } from '../../common/xattr.ts';
import { inStorage, StorageError } from '../errors.ts';
import { artifactsOf, formatManifest, manifestFileName, sumsFileOf } from '../manifest.ts';
import type { Manifest } from '../manifest.ts';
import type { AddOptions, BackupEntry, BackupWriter, Increment, MachineIdentity } from '../storage.ts';
import { lstatOrNull, problemOfFiles, readEntry } from './entries.ts';
import { ParentUnusable, type StoredParent, writeIncrement } from './increment.ts';
import { assertArtifactName } from './names.ts';
import { writeQcow2 } from './qcow2Writer.ts';
import type { Quota } from '../quota.ts';
import { writeWithin } from './quotaWatch.ts';
import { blocksOf } from './storedBytes.ts';
import { SourceFailure } from './sourceReader.ts';

/** Ending of a copy that is not complete. No artifact's name may end like this. */
const copyingSuffix = '.copying.tmp';

/** What a writer needs to know of the storage that it belongs to. */
export interface WriterContext {
  readonly storage: string;
  readonly root: string;
  readonly machine: MachineIdentity;
  /** `<machine>/.partial-<jobId>`; exists. */
  readonly directory: string;
  /** Where backups of the machine go now; may have changed since the writer began. */
  readonly machineDirectory: () => Promise<string>;
  /** `null`: it may take what there is. */
  readonly quota: Quota | null;
  /** Passed before each piece that is read for it or written. */
  readonly throttle: Throttle;
  readonly findCommitted: (backupId: string) => Promise<BackupEntry | null>;
}

/** A backup that gathers in a `.partial-<jobId>` directory and is committed by renaming that to its T1. */
export class DirectoryBackupWriter implements BackupWriter {
  readonly readUnitBytes = clusterBytes;
  readonly #context: WriterContext;

  constructor(context: WriterContext) {
    this.#context = context;
  }

  get directory(): string {
    return this.#context.directory;
  }

  async has(fileName: string): Promise<boolean> {
    return this.#run(`looking for ${fileName}`, () => exists(this.#pathOf(fileName)));
  }

  async addByRename(from: string, fileName: string, options: AddOptions = {}): Promise<FileDigest> {
    const to = this.#pathOf(fileName);
    return this.#run(`moving ${from} to ${to}`, async () => {
      const [source, target] = [await lstatOrNull(from), await lstatOrNull(to)];
      if (source === null && target === null) {
        throw new StorageError('FILE_MISSING', `${from} is not there, and has not been moved to ${to}`);
      }
      if (source !== null && target !== null) {
        throw new StorageError('BACKUP_EXISTS', `both ${from} and ${to} are there; nothing is overwritten`, {
          hint: `compare the two: cmp ${from} ${to}`,
        });
      }
      if (source !== null) await this.#moveIn(from, to, options);
      return this.#withSums(to, await hashFile(to, this.#throttled(options)));
    });
  }

  #throttled(options: AddOptions): AddOptions {
    // Not by an average since the beginning: a pause would be made up for.
    const bandwidth = new Bandwidth(options.limit);
    const throttle = throttleOf(bandwidth, this.#context.throttle);
    return { ...options, limit: undefined, throttle };
  }

  /** Keeps the digests of a volume's chunks beside it. */
  async #withSums(path: string, { sizeBytes, sha256, sums }: HashResult): Promise<FileDigest> {
    if (sums !== null) await writeFileDurable(sumsFileOf(path), sums);
    return { sizeBytes, sha256 };
  }

  async #moveIn(from: string, to: string, options: AddOptions): Promise<void> {
    if (!(await lstat(from)).isFile())
      throw new StorageError('FOREIGN_CONTENT', `${from} is not a regular file`);
    // Before anything is changed on the file: a caller that has to copy instead finds it as it was.
    if (!(await sameFileSystem(this.directory, from))) {
      throw new StorageError(
        'CROSS_FILE_SYSTEM',
        `${from} and ${this.directory} are on different file systems`,
      );
    }
    if (!from.startsWith(`${this.directory}/`)) await this.#context.quota?.take(await blocksOf(from));
    else await this.#context.quota?.requireKept();
    await dropLibvirtLabels(from);
    if (options.ownership !== undefined) await applyOwnership(from, options.ownership);
    await fsyncFile(from);
    await renameDurable(from, to);
  }

  async addByCopy(from: string, fileName: string, options: AddOptions = {}): Promise<FileDigest> {
    const to = this.#pathOf(fileName);
    return this.#run(`copying ${from} to ${to}`, async () => {
      const throttled = this.#throttled(options);
      if (await exists(to)) return this.#withSums(to, await hashFile(to, throttled));
      const copying = await this.#makeRoomForCopy(fileName);
      const ownership = options.ownership ?? (await readOwnership(from));
      const copied = await writeWithin(this.#context.quota, copying, throttled, (watched) =>
        copyFileDurable({ ...watched, from, to: copying, mode: 0o600 }),
      );
      await applyOwnership(copying, ownership);
      await fsyncFile(copying);
      await renameDurable(copying, to);
      return this.#withSums(to, copied);
    });
  }

  /** Whatever is added is on the disk already. */
  flush(): Promise<void> {
    return Promise.resolve();
  }

  async addVolume(source: VolumeSource, fileName: string, options: AddOptions = {}): Promise<FileDigest> {
    return this.#write(fileName, options, (to, watched) => writeQcow2(source, to, watched));
  }

  async addIncrement(
    source: VolumeSource,
    { parent, changes }: Increment,
    fileName: string,
    options: AddOptions = {},
  ): Promise<FileDigest> {
    try {
      return await this.#write(fileName, options, async (to, watched) => {
        const stored = await this.#storedParent(parent);
        return writeIncrement(source, changes, stored, to, watched);
      });
    } catch (error) {
      if (!(error instanceof ParentUnusable)) throw error;
      throw new StorageError('PARENT_UNUSABLE', error.message, {
        cause: error,
        hint: `stillpoint verify --data ${parent.backupId}`,
      });
    }
  }

  async #storedParent({ backupId, target }: Increment['parent']): Promise<StoredParent> {
    const entry = await this.#context.findCommitted(backupId);
    if (entry === null) throw new ParentUnusable(`there is no backup ${backupId} any more`);
    const volume = entry.manifest?.volumes.find((candidate) => candidate.target === target);
    if (entry.state !== 'Active' || volume === undefined)
      throw new ParentUnusable(`backup ${backupId} is damaged: ${entry.problem ?? `it has no ${target}`}`);
    if (volume.format !== 'qcow2') throw new ParentUnusable(`${volume.file} is ${volume.format}`);
    const { storedBytes, sha256 } = volume;
    return { path: join(entry.directory, volume.file), sizeBytes: storedBytes, sha256 };
  }

  /** Writes a volume under a name of its own, which becomes the file's when it is complete. */
  async #write(
    fileName: string,
    options: AddOptions,
    write: (to: string, watched: AddOptions) => Promise<HashResult>,
  ): Promise<FileDigest> {
    const to = this.#pathOf(fileName);
    try {
      return await this.#run(`writing ${to}`, async () => {
        const throttled = this.#throttled(options);
        if (await exists(to))
          return this.#withSums(to, await hashFile(to, { ...throttled, digest: 'chunks' }));
        const copying = await this.#makeRoomForCopy(fileName);
        const written = await writeWithin(this.#context.quota, copying, throttled, (watched) =>
          write(copying, watched),
        );
        try {
          // Who gave up during the last fsync may have begun anew.
          options.signal?.throwIfAborted();
          await renameDurable(copying, to);
        } catch (error) {
          await removeUnfinished(copying);
          throw error;
        }
        return this.#withSums(to, written);
      });
    } catch (error) {
      throw error instanceof SourceFailure ? error.cause : error;
    }
  }

  /**
   * A name for a copy on its way, never used before: a predecessor that hung may still be at work on its own, and
   * what it does when the storage answers again must not meet ours. What a killed one left is removed.
   */
  async #makeRoomForCopy(fileName: string): Promise<string> {
    const beginning = `.${createHash('sha256').update(fileName).digest('hex').slice(0, 32)}.`;
    for (const name of await readdir(this.directory))
      if (name.startsWith(beginning)) await rm(join(this.directory, name), { force: true });
    return join(this.directory, `${beginning}${randomBytes(8).toString('hex')}${copyingSuffix}`);
  }

  async commit(manifest: Manifest): Promise<BackupEntry> {
    return this.#run(`committing ${this.directory}`, async () => {
      const { machine } = this.#context;
      if (manifest.machine.uuid !== machine.uuid || manifest.machine.name !== machine.name) {
        throw new StorageError(
          'MANIFEST_INVALID',
          `the manifest is of ${manifest.machine.name}, not of ${machine.name}`,
        );
      }
      const text = formatManifest(manifest);
      const committed = await this.#context.findCommitted(manifest.id);
      if (committed !== null) return this.#commitAgain(committed);

      const problem = await problemOfFiles(this.directory, manifest);
      if (problem !== null) {
        throw new StorageError('FILE_MISSING', `the backup is not complete: ${problem}`, {
          hint: 'retry the job',
        });
      }
      await this.#removeStrays(manifest);
      await writeFileDurable(join(this.directory, manifestFileName), text);

      const machineDirectory = await this.#context.machineDirectory();
      await makeDirectoryDurable(machineDirectory, 0o700);
      const target = join(machineDirectory, formatPointInTime(new Date(manifest.pointInTime)));
      await this.#renameTo(target);
      return readEntry(this.#context.storage, target);
    });
  }

  /** The commit had happened before a crash: make sure that it is on the disk, take the empty new partial away. */
  async #commitAgain(committed: BackupEntry): Promise<BackupEntry> {
    await fsyncDirectory(dirname(committed.directory));
    await removeTree(this.directory, { root: this.#context.root });
    return committed;
  }

  async #renameTo(target: string): Promise<void> {
    const taken = (cause?: unknown): StorageError =>
      new StorageError('BACKUP_EXISTS', `${target} is there already; nothing is overwritten`, {
        cause,
        hint: `stillpoint show ${this.#context.machine.name}@${basename(target)}`,
      });
    if (await exists(target)) throw taken();
    try {
      await rename(this.directory, target);
    } catch (error) {
      if (['ENOTEMPTY', 'EEXIST', 'ENOTDIR'].some((code) => isErrno(error, code))) throw taken(error);
      throw error;
    }
    await fsyncDirectory(dirname(target));
    if (dirname(this.directory) !== dirname(target)) await fsyncDirectory(dirname(this.directory));
  }

  /** Takes out what killed predecessors left; what we cannot explain stops the commit. */
  async #removeStrays(manifest: Manifest): Promise<void> {
    const expected = new Set([manifestFileName, ...artifactsOf(manifest).map(({ file }) => file)]);
    for (const name of await readdir(this.directory)) {
      if (expected.has(name)) continue;
      if (!isTemporaryName(name) && !name.endsWith(copyingSuffix)) {
        throw new StorageError(
          'FOREIGN_CONTENT',
          `${join(this.directory, name)} does not belong to the backup`,
          {
            hint: `look at it and move it away: ls -la ${this.directory}`,
          },
        );
      }
      await rm(join(this.directory, name));
    }
  }

  /** Files that are complete are found by `has`. */
  suspend(): Promise<void> {
    return Promise.resolve();
  }

  async abandon(): Promise<void> {
    await this.#run(`removing ${this.directory}`, () =>
      removeTree(this.directory, { root: this.#context.root }),
    );
  }

  #pathOf(fileName: string): string {
    assertArtifactName(fileName);
    return join(this.directory, fileName);
  }

  async #run<T>(what: string, operation: () => Promise<T>): Promise<T> {
    return inStorage(this.#context.root, what, operation);
  }
}
