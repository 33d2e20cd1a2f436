import { access, constants, lstat, readdir, rm, rmdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errorRecord, isErrno } from '../../common/errors.ts';
import {
  exists,
  freeBytes,
  fsyncDirectory,
  isBelow,
  makeDirectoryDurable,
  renameDurable,
  sameDevice,
  sameFileSystem,
} from '../../common/files.ts';
import { parsePointInTime } from '../../common/time.ts';
import { type Throttle, throttleOf } from '../../common/throttle.ts';
import { inStorage, StorageError } from '../errors.ts';
import type { HostManifest } from '../hostManifest.ts';
import { artifactsOf, manifestFileName } from '../manifest.ts';
import { protectedError } from '../protection.ts';
import type {
  HostBackupEntry,
  BackupEntry,
  BeginRequest,
  CopiedOut,
  CopyOutOptions,
  MachineIdentity,
  PartialBackup,
  Protection,
  ReadWatch,
  Storage,
  StorageCheck,
  StoredFile,
  VerifyOptions,
  VerifyReport,
} from '../storage.ts';
import {
  backupDirectories,
  belongsToAnother,
  directoriesIn,
  lstatOrNull,
  machineDirectories,
  readEntry,
  resolveRoot,
} from './entries.ts';
import { filesByPath } from './filesByPath.ts';
import { selectEntry } from './find.ts';
import { addHostBackup, deleteHostBackup, hostBackups, hostFile } from './hostBackups.ts';
import {
  deletingDirectoryName,
  encodeMachineName,
  isDeletingDirectory,
  jobIdOfPartial,
  machineDirectoryWithUuid,
  partialDirectoryName,
  pointInTimeOfDeleting,
  dataVerificationFileName,
  protectionFileName,
} from './names.ts';
import { readProtection, removeProtection, writeProtection } from './protection.ts';
import { canReflink, removeReflinkTrials } from './reflinkTrial.ts';
import { Quota, quotaHint } from '../quota.ts';
import { fileSystemSpace, noBounds, type StorageBounds, type StorageSpace } from '../space.ts';
import type { DataVerification, Verification } from '../verification.ts';
import { writeDataVerification } from './dataVerification.ts';
import { storedBytesBelow } from './storedBytes.ts';
import { writeVerification } from './verifications.ts';
import { verifyDirectory } from './verify.ts';
import { DirectoryBackupWriter } from './writer.ts';

/** What is in a storage is memory and disks of guests: nobody but root looks into it. */
const directoryMode = 0o700;

/** Dated plain artifacts: `<root>/<machine>/<T1>/`, readable with `qemu-img` and `virsh` alone. */
export class DirectoryStorage implements Storage {
  readonly kind = 'directory';
  readonly name: string;
  readonly location: string;
  readonly bounds: StorageBounds;
  readonly #quota: Quota | null;
  readonly #bandwidth: Throttle | undefined;

  constructor(options: {
    readonly name: string;
    readonly path: string;
    readonly bounds?: StorageBounds | undefined;
    /** What goes into it and comes out of it is held to that. */
    readonly bandwidth?: Throttle | undefined;
  }) {
    const { name, path, bounds = noBounds, bandwidth } = options;
    const { quotaBytes } = bounds;
    const hint = quotaHint(name, this.kind);
    this.name = name;
    this.location = path;
    this.bounds = bounds;
    this.#bandwidth = bandwidth;
    this.#quota =
      quotaBytes === null ? null : new Quota({ name, quotaBytes, hint, measure: () => this.#measure() });
  }

  #measure(): Promise<number> {
    return this.#run('looking at what is stored', storedBytesBelow);
  }

  async space({ measured = false }: { readonly measured?: boolean | undefined } = {}): Promise<StorageSpace> {
    const { quotaBytes } = this.bounds;
    const storedBytes = measured || quotaBytes !== null ? await this.#measure() : null;
    return { ...(await fileSystemSpace(this.location)), storedBytes, quotaBytes };
  }

  async check(): Promise<StorageCheck> {
    const about = { name: this.name, location: this.location };
    try {
      return await this.#run('checking the storage', async (root) => {
        const free = await freeBytes(root);
        await access(root, constants.R_OK | constants.W_OK | constants.X_OK);
        return { ...about, ok: true, freeBytes: free, problem: null };
      });
    } catch (error) {
      return { ...about, ok: false, freeBytes: null, problem: errorRecord(error) };
    }
  }

  async takesByRename(path: string): Promise<boolean> {
    return this.#run('looking for the file system', (root) => sameFileSystem(root, path));
  }

  async isOnDeviceOf(path: string): Promise<boolean> {
    return this.#run('looking for the file system', (root) => sameDevice(root, path));
  }

  async sharesBlocks(): Promise<boolean> {
    return this.#run('trying to share blocks', canReflink);
  }

  async begin({ jobId, machine, hold }: Omit<BeginRequest, 'backupId'>): Promise<DirectoryBackupWriter> {
    return this.#run(`beginning a backup of ${machine.name}`, async (root) => {
      const directory = await this.#partialDirectory(root, partialDirectoryName(jobId), machine);
      return new DirectoryBackupWriter({
        storage: this.name,
        root,
        machine,
        directory,
        quota: this.#quota,
        throttle: throttleOf(hold, this.#bandwidth),
        machineDirectory: () => this.#machineDirectory(root, machine),
        findCommitted: (backupId) => this.findCommitted(backupId),
      });
    });
  }

  /** The partial directory that a crash left, wherever the machine's directory was then, or a new one. */
  async #partialDirectory(root: string, name: string, machine: MachineIdentity): Promise<string> {
    const candidates = [
      encodeMachineName(machine.name),
      machineDirectoryWithUuid(machine.name, machine.uuid),
    ];
    for (const candidate of candidates.map((directory) => join(root, directory, name))) {
      if ((await lstatOrNull(dirname(candidate)))?.isDirectory() !== true) continue;
      if ((await lstatOrNull(candidate))?.isDirectory() === true) return candidate;
    }
    const directory = join(await this.#machineDirectory(root, machine), name);
    await makeDirectoryDurable(directory, directoryMode);
    return directory;
  }

  /** Where backups of a machine go: its name, or name and UUID where the name belongs to another machine. */
  async #machineDirectory(root: string, machine: MachineIdentity): Promise<string> {
    const plain = join(root, encodeMachineName(machine.name));
    const directory = (await belongsToAnother(plain, machine.uuid))
      ? join(root, machineDirectoryWithUuid(machine.name, machine.uuid))
      : plain;
    const status = await lstatOrNull(directory);
    if (status !== null && !status.isDirectory()) {
      throw new StorageError('FOREIGN_CONTENT', `${directory} is not a directory`, {
        hint: `look at it and move it away: ls -la ${directory}`,
      });
    }
    return directory;
  }

  async findCommitted(backupId: string): Promise<BackupEntry | null> {
    return (await this.list()).find(({ id }) => id === backupId) ?? null;
  }

  async list(filter: { readonly machine?: string | undefined } = {}): Promise<readonly BackupEntry[]> {
    return this.#run('listing backups', async (root) => {
      const entries: BackupEntry[] = [];
      for (const machineDirectory of await machineDirectories(root)) {
        for (const name of await backupDirectories(join(root, machineDirectory))) {
          entries.push(await readEntry(this.name, join(root, machineDirectory, name)));
        }
      }
      return entries
        .filter(
          ({ machine }) =>
            filter.machine === undefined || [machine.name, machine.uuid].includes(filter.machine),
        )
        .toSorted((a, b) => order(a.pointInTime, b.pointInTime) || order(a.directory, b.directory));
    });
  }

  async find(idOrName: string): Promise<BackupEntry> {
    return selectEntry(await this.list(), idOrName);
  }

  copyOut(artifact: StoredFile, to: string, options: CopyOutOptions): Promise<CopiedOut> {
    return filesByPath.copyOut(artifact, to, { ...options, throttle: this.#bandwidth });
  }

  open(): Promise<null> {
    return Promise.resolve(null);
  }

  /** Who sees its files reads them. */
  requireReading(): Promise<void> {
    return Promise.resolve();
  }

  readText(artifact: Pick<StoredFile, 'path' | 'sha256'>): Promise<string> {
    return filesByPath.readText(artifact);
  }

  isSameAs(artifact: Pick<StoredFile, 'sha256'>, file: string): Promise<boolean> {
    return filesByPath.isSameAs(artifact, file);
  }

  async verify(entry: BackupEntry, options: VerifyOptions): Promise<VerifyReport> {
    return this.#run(`verifying ${entry.directory}`, async (root) => {
      await this.#assertOurs(root, entry.directory);
      return verifyDirectory(entry.directory, entry, { ...options, throttle: this.#bandwidth });
    });
  }

  async delete(entry: BackupEntry): Promise<void> {
    await this.#run(`deleting ${entry.directory}`, async (root) => {
      const { directory } = entry;
      await this.#assertOurs(root, directory);
      const deleting = join(dirname(directory), deletingDirectoryName(basename(directory)));
      if (await exists(deleting)) await this.#finishDeletion(deleting);
      if (!(await exists(directory))) return;
      const protection = await readProtection(directory);
      if (protection !== null) throw protectedError(entry, protection.reason);
      await assertFlat(directory);
      await renameDurable(directory, deleting);
      await this.#finishDeletion(deleting);
    });
  }

  /** Somebody may have protected it between the look and the rename, after which nobody finds it any more. */
  async #putBackIfProtected(deleting: string): Promise<void> {
    const protection = await readProtection(deleting);
    if (protection === null) return;
    const directory = join(dirname(deleting), pointInTimeOfDeleting(basename(deleting)));
    await renameDurable(deleting, directory);
    throw protectedError({ id: null, directory, storage: this.name }, protection.reason);
  }

  async setProtected(entry: BackupEntry, protection: Protection | null): Promise<void> {
    await this.#run(`protecting ${entry.directory}`, async (root) => {
      const { directory } = entry;
      await this.#assertOurs(root, directory);
      if (!(await exists(directory))) {
        throw new StorageError('BACKUP_NOT_FOUND', `${directory} is not there any more`, {
          hint: 'stillpoint list',
        });
      }
      assertNoArtifact(entry, protectionFileName);
      if (protection === null) await removeProtection(directory);
      else await writeProtection(directory, protection);
    });
  }

  reading<T>(_what: string, read: (watch: ReadWatch) => Promise<T>): Promise<T> {
    return read({ signal: new AbortController().signal, alive: () => undefined });
  }

  addVerification(
    entry: BackupEntry,
    verification: Omit<Verification, 'picture'>,
    pictureFile: string | null,
  ): Promise<Verification> {
    return this.#run(`the verification of ${entry.directory}`, async (root) => {
      await this.#assertOurs(root, entry.directory);
      if (await exists(join(entry.directory, manifestFileName)))
        return writeVerification(entry.directory, verification, pictureFile);
      throw new StorageError('BACKUP_NOT_FOUND', `${entry.directory} is not there any more`, {
        hint: 'stillpoint list',
      });
    });
  }

  addDataVerification(entry: BackupEntry, verification: DataVerification): Promise<void> {
    return this.#run(`the verification of ${entry.directory}`, async (root) => {
      await this.#assertOurs(root, entry.directory);
      assertNoArtifact(entry, dataVerificationFileName);
      if (await exists(join(entry.directory, manifestFileName)))
        return writeDataVerification(entry.directory, verification);
      throw new StorageError('BACKUP_NOT_FOUND', `${entry.directory} is not there any more`, {
        hint: 'stillpoint list',
      });
    });
  }

  /** Removes what is in a `.deleting-` directory, that directory, and the machine's if nothing else is in it. */
  /** Somebody else may be finishing the same one: what is gone is as it should be. */
  async #finishDeletion(deleting: string): Promise<void> {
    try {
      await assertFlat(deleting);
      await this.#putBackIfProtected(deleting);
      for (const name of await readdir(deleting)) await rm(join(deleting, name), { force: true });
      await rmdir(deleting);
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return;
      throw error;
    }
    const machineDirectory = dirname(deleting);
    try {
      await fsyncDirectory(machineDirectory);
      await rmdir(machineDirectory);
      await fsyncDirectory(dirname(machineDirectory));
    } catch (error) {
      if (!['ENOTEMPTY', 'EEXIST', 'ENOENT'].some((code) => isErrno(error, code))) throw error;
    }
  }

  async cleanUp(): Promise<number> {
    return this.#run('finishing deletions', async (root) => {
      let finished = 0;
      await removeReflinkTrials(root);
      for (const machineDirectory of await machineDirectories(root)) {
        for (const name of await directoriesIn(join(root, machineDirectory))) {
          if (!isDeletingDirectory(name)) continue;
          await this.#finishDeletion(join(root, machineDirectory, name));
          finished += 1;
        }
      }
      return finished;
    });
  }

  addHostBackup(manifest: HostManifest, files: ReadonlyMap<string, string>): Promise<string> {
    return this.#run('writing the backup of a host', (root) => addHostBackup(root, manifest, files));
  }

  hostBackups(): Promise<readonly HostBackupEntry[]> {
    return this.#run('listing the backups of hosts', (root) => hostBackups(this.name, root));
  }

  hostFile(entry: Pick<HostBackupEntry, 'directory'>, file: string): Promise<Buffer> {
    return this.#run(`reading ${file}`, () => hostFile(entry, file));
  }

  deleteHostBackup(entry: Pick<HostBackupEntry, 'directory'>): Promise<void> {
    return this.#run('removing the backup of a host', (root) => deleteHostBackup(root, entry));
  }

  async partials(): Promise<readonly PartialBackup[]> {
    return this.#run('looking for unfinished backups', async (root) => {
      const found: PartialBackup[] = [];
      for (const machineDirectory of await machineDirectories(root)) {
        for (const name of await directoriesIn(join(root, machineDirectory))) {
          const jobId = jobIdOfPartial(name);
          if (jobId === null) continue;
          const directory = join(root, machineDirectory, name);
          found.push({ jobId, directory, changedAt: (await lstat(directory)).mtime.toISOString() });
        }
      }
      return found;
    });
  }

  /** An entry is data that may have come from outside: its directory must be a backup's place in our root. */
  async #assertOurs(root: string, directory: string): Promise<void> {
    const machineDirectory = dirname(directory);
    const isPlace =
      isBelow(root, directory) &&
      dirname(machineDirectory) === root &&
      parsePointInTime(basename(directory)) !== null;
    const isReal =
      isPlace &&
      (await lstatOrNull(machineDirectory))?.isDirectory() !== false &&
      (await lstatOrNull(directory))?.isDirectory() !== false;
    if (!isReal)
      throw new StorageError('FOREIGN_CONTENT', `${directory} is no backup of the storage ${this.name}`);
  }

  async #run<T>(what: string, operation: (root: string) => Promise<T>): Promise<T> {
    return inStorage(this.location, what, async () => operation(await resolveRoot(this.location)));
  }
}

/** A backup holds files only; a directory in it is not from us, and nothing is deleted then. */
async function assertFlat(directory: string): Promise<void> {
  const strange = (await readdir(directory, { withFileTypes: true })).find((item) => item.isDirectory());
  if (strange === undefined) return;
  throw new StorageError(
    'FOREIGN_CONTENT',
    `${join(directory, strange.name)} does not belong to the backup`,
    {
      hint: `look at it and move it away: ls -la ${join(directory, strange.name)}`,
    },
  );
}

/** A manifest is data from anybody: what it calls its own is not overwritten. */
function assertNoArtifact({ manifest, directory }: BackupEntry, fileName: string): void {
  if (manifest === null || artifactsOf(manifest).every(({ file }) => file !== fileName)) return;
  throw new StorageError('FOREIGN_CONTENT', `${fileName} in ${directory} is a part of the backup itself`);
}

function order(a: string, b: string): number {
  return a < b ? -1 : Number(a > b);
}
