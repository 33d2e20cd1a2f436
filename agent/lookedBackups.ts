import { dirname, resolve } from 'node:path';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import type { AgentParts } from './agent.ts';
import { isOwnerAlive } from './jobs/owner.ts';
import { RestoreError } from './restore/errors.ts';
import { type Extracted, type ExtractionOptions, FileExtraction } from './restore/fileExtraction.ts';
import {
  bytesOfPath,
  findGuestFile,
  type GuestFile,
  type GuestTree,
  shownPath,
} from './restore/guestTree.ts';
import {
  type LocatedFileSystem,
  locateFileSystems,
  openFileSystem,
  requireReadable,
} from './restore/guestFileSystem.ts';
import { type Look, Looks } from './restore/looks.ts';

/** Which file systems of a backup are meant; all unless told. */
export interface FileSystemChoice {
  readonly volumes?: readonly string[] | undefined;
  /** Number of a partition; 0 for a file system on a whole volume. */
  readonly partition?: number | undefined;
}

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

/** A file system that was opened, and the files that were asked for in it. */
interface FoundFiles extends AsyncDisposable {
  readonly tree: GuestTree;
  readonly name: string;
  /** One for each path, in order. */
  readonly files: readonly GuestFile[];
}

/** Looking into backups: their volumes as files, and the files of their guests. Nothing of it changes a backup. */
export class LookedBackups {
  readonly looks: Looks;
  readonly #parts: Pick<AgentParts, 'configPath'>;
  readonly #storage: (name: string) => Storage;

  constructor(parts: Pick<AgentParts, 'config' | 'configPath'>, storage: (name: string) => Storage) {
    this.#parts = parts;
    this.#storage = storage;
    this.looks = new Looks(dirname(parts.config.agent.socket));
  }

  /**
   * Mounts volumes of a backup as raw files; `looks.end` takes them away.
   * @throws RestoreError
   */
  mount(entry: BackupEntry, directory: string, volumes: readonly string[] | undefined): Promise<Look> {
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
    const { entry, volumes, signal } = request;
    const config = this.#configOf(entry);
    const look = await this.looks.begin({ entry, volumes, directory: null, config });
    try {
      const directory = this.looks.directoryOf(look);
      const located = requireReadable(chosenOf(await locateFileSystems(look, signal), request));
      await using found = await openTheOne(located, paths, directory, signal);
      if (found === null) throw notFound(entry, paths, located);
      return await use(found);
    } finally {
      await this.looks.end(look);
    }
  }

  #configOf(entry: BackupEntry): string | null {
    return this.#storage(entry.storage).kind === 'directory' ? null : resolve(this.#parts.configPath);
  }
}

function chosenOf(
  located: readonly LocatedFileSystem[],
  { partition }: FileSystemChoice,
): readonly LocatedFileSystem[] {
  return located.filter((one) => partition === undefined || one.partition === partition);
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

/**
 * Opens the file system that has every path; `null` when none has.
 * @throws RestoreError FILE_SYSTEM_UNCLEAR when several have
 */
async function openTheOne(
  located: readonly LocatedFileSystem[],
  paths: readonly string[],
  directory: string,
  signal: AbortSignal,
): Promise<FoundFiles | null> {
  await using opened = new AsyncDisposableStack();
  let found: Omit<FoundFiles, typeof Symbol.asyncDispose> | null = null;
  for (const one of located) {
    const open = await openFileSystem(one, directory, signal);
    opened.use(open);
    const files = await findAll(open.tree, paths);
    if (files.includes(null)) {
      await open[Symbol.asyncDispose]();
      continue;
    }
    if (found !== null)
      throw new RestoreError(
        'FILE_SYSTEM_UNCLEAR',
        `${shownPath(bytesOfPath(paths.join(', ')))}: in ${found.name} and in ${open.name}`,
        { hint: 'choose with --volume TARGET and --partition NUMBER (0: the whole volume)' },
      );
    found = { tree: open.tree, name: open.name, files: files.flatMap((file) => file ?? []) };
  }
  if (found === null) return null;
  const kept = opened.move();
  return { ...found, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

async function findAll(tree: GuestTree, paths: readonly string[]): Promise<readonly (GuestFile | null)[]> {
  const files: (GuestFile | null)[] = [];
  for (const path of paths) files.push(await findGuestFile(tree, bytesOfPath(path)));
  return files;
}

function notFound(
  entry: BackupEntry,
  paths: readonly string[],
  located: readonly LocatedFileSystem[],
): RestoreError {
  const what = paths.length === 1 ? (paths[0] ?? '') : `all of ${paths.join(', ')}`;
  return new RestoreError(
    'FILE_NOT_FOUND',
    `${shownPath(bytesOfPath(what))} is not in this backup: looked in ${located.map(({ name }) => name).join(', ')}`,
    { hint: `stillpoint files ${entry.id ?? entry.directory} / lists what is there` },
  );
}
