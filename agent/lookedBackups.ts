import { dirname, join, resolve } from 'node:path';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import type { AgentParts } from './agent.ts';
import { isOwnerAlive } from './jobs/owner.ts';
import { installedGuestfs } from './restore/appliance.ts';
import { RestoreError } from './restore/errors.ts';
import { type Extracted, type ExtractionOptions, FileExtraction } from './restore/fileExtraction.ts';
import {
  type FileSearch,
  type FileSystemChoice,
  findInFileSystems,
  type FoundFiles,
} from './restore/foundFiles.ts';
import { bytesOfPath, type GuestFile, type GuestTree } from './restore/guestTree.ts';
import { type Look, Looks } from './restore/looks.ts';

/** What of a backup is wanted. */
export interface FilesRequest extends FileSystemChoice {
  readonly entry: BackupEntry;
  readonly signal: AbortSignal;
}

/** A file of a guest, and where a symbolic link leads. */
export interface ListedFile extends GuestFile {
  /** `null` for a file that cannot be read. */
  readonly modifiedAt: Date | null;
  readonly leadsTo: string | null;
}

/** Looking into backups: their volumes as files, and the files of their guests. Nothing of it changes a backup. */
export class LookedBackups {
  readonly looks: Looks;
  readonly #parts: Pick<AgentParts, 'configPath'>;
  readonly #storage: (name: string) => Storage;
  readonly #guestfs: FileSearch['guestfs'];
  /** Keeps the appliance of libguestfs. */
  readonly #appliance: string;

  /** @param guestfs where libguestfs is, if anywhere */
  constructor(
    parts: Pick<AgentParts, 'config' | 'configPath'>,
    storage: (name: string) => Storage,
    guestfs: FileSearch['guestfs'] = installedGuestfs,
  ) {
    this.#parts = parts;
    this.#guestfs = guestfs;
    this.#storage = storage;
    this.#appliance = join(parts.config.agent.stateDir, 'appliance');
    this.looks = new Looks(dirname(parts.config.agent.socket));
  }

  /**
   * Mounts volumes of a backup as raw files; `looks.end` takes them away.
   * @throws RestoreError
   */
  async mount(entry: BackupEntry, directory: string, volumes: readonly string[] | undefined): Promise<Look> {
    await this.#storage(entry.storage).requireReading();
    return this.looks.begin({ entry, volumes, directory, config: this.#configOf(entry) });
  }

  /**
   * Reads a backup, which nobody on this host can delete meanwhile.
   * @param found is looked up once more: it may have been deleted just before
   * @throws StorageError BACKUP_NOT_FOUND
   */
  async whileKept<T>(found: BackupEntry, read: (entry: BackupEntry) => Promise<T>): Promise<T> {
    const look = await this.looks.hold(found);
    try {
      return await read(found.id === null ? found : await this.#storage(found.storage).find(found.id));
    } finally {
      await this.looks.end(look);
    }
  }

  /** @throws RestoreError MOUNT_BUSY: a process of ours reads this copy */
  async requireUnused(entry: BackupEntry): Promise<void> {
    for (const { backup, owner, directory } of await this.looks.list()) {
      if (backup.id !== entry.id || backup.storage !== entry.storage || !isOwnerAlive(owner)) continue;
      throw new RestoreError('MOUNT_BUSY', `process ${owner.pid} reads this backup`, {
        hint: directory === null ? 'wait until it has ended' : `stillpoint storage unmount ${directory}`,
        retryable: true,
      });
    }
  }

  /**
   * Takes files and directories of a guest out of a backup, all of them from one file system.
   * @param paths in the guest's file system, of files and directories
   * @throws RestoreError FILE_NOT_FOUND, FILE_EXISTS, WORK_DIRECTORY_UNSAFE: nothing was written; FILE_UNREADABLE in the
   *   middle
   */
  extract(
    request: FilesRequest,
    paths: readonly string[],
    options: Omit<ExtractionOptions, 'signal'>,
  ): Promise<{ readonly fileSystem: string; readonly extracted: Extracted }> {
    const { signal } = request;
    return this.#inFileSystem(request, paths, async ({ tree, name, files }) => {
      const extraction = new FileExtraction(tree, { ...options, to: resolve(options.to), signal });
      const wanted = paths.map(bytesOfPath);
      for (const path of wanted) await extraction.requireRoom(path);
      for (const [index, file] of files.entries()) await extraction.extract(wanted[index] ?? '', file);
      return { fileSystem: name, extracted: extraction.extracted };
    });
  }

  /**
   * Lists a directory of a guest, or the one file that a path names.
   * @throws RestoreError FILE_NOT_FOUND
   */
  list(
    request: FilesRequest,
    path: string,
  ): Promise<{ readonly fileSystem: string; readonly files: readonly ListedFile[] }> {
    return this.#inFileSystem(request, [path], async ({ tree, name, files: [found] }) => {
      if (found === undefined) throw new Error('nothing was found for a path');
      const files: ListedFile[] = [];
      for (const file of found.kind === 'directory' ? await tree.list(found) : [found])
        files.push({ ...file, ...(await detailsOf(tree, file)) });
      return { fileSystem: name, files };
    });
  }

  /** The one file system in which all paths are. */
  async #inFileSystem<T>(
    request: FilesRequest,
    paths: readonly string[],
    use: (found: FoundFiles) => Promise<T>,
  ): Promise<T> {
    const { entry, volumes } = request;
    await this.#storage(entry.storage).requireReading();
    const config = this.#configOf(entry);
    const look = await this.looks.begin({ entry, volumes, directory: null, config });
    try {
      const directory = this.looks.directoryOf(look);
      const places = { look, directory, appliance: this.#appliance, guestfs: this.#guestfs };
      await using found = await findInFileSystems({ ...request, ...places, paths });
      return await use(found);
    } finally {
      await this.looks.end(look);
    }
  }

  #configOf(entry: BackupEntry): string | null {
    return this.#storage(entry.storage).kind === 'directory' ? null : resolve(this.#parts.configPath);
  }
}

/** What cannot be read hides no other file. */
async function detailsOf(
  tree: GuestTree,
  file: GuestFile,
): Promise<Pick<ListedFile, 'modifiedAt' | 'leadsTo'>> {
  try {
    if (file.kind !== 'nameless') return await tree.details(file);
  } catch (error) {
    if (!(error instanceof RestoreError) || error.code !== 'FILE_UNREADABLE') throw error;
  }
  return { modifiedAt: null, leadsTo: null };
}
