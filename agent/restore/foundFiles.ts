import type { BackupEntry } from '../../storage/storage.ts';
import { type InstalledGuestfs, installHint } from './appliance.ts';
import { RestoreError } from './errors.ts';
import type { FileSystemKind } from './fileSystems.ts';
import {
  type LocatedFileSystem,
  locateFileSystems,
  openFileSystem,
  type OpenFileSystem,
} from './guestFileSystem.ts';
import { bytesOfPath, findGuestFile, type GuestFile, type GuestTree, shownPath } from './guestTree.ts';
import { type GuestfsFileSystem, type GuestfsPlaces, GuestfsVolumes } from './guestfsVolumes.ts';

/*
 * Which file system of a backup has the files that are asked for. ext2, ext3 and ext4 on volumes and partitions are
 * read by e2fsprogs, at once; for whatever else there may be the appliance of libguestfs is started.
 */

/** Which file systems of a backup are meant; all unless told. */
export interface FileSystemChoice {
  readonly volumes?: readonly string[] | undefined;
  /** Number of a partition, 0 for a whole volume; `NUMBER:SUBVOLUME` of btrfs; `GROUP/VOLUME` of LVM. */
  readonly partition?: string | undefined;
}

/** A file system that was opened, and the files that were asked for in it. */
export interface FoundFiles extends AsyncDisposable {
  readonly tree: GuestTree;
  readonly name: string;
  /** One for each path, in order. */
  readonly files: readonly GuestFile[];
}

export interface FileSearch extends GuestfsPlaces, FileSystemChoice {
  readonly entry: BackupEntry;
  /** In the guest's file system. */
  readonly paths: readonly string[];
  readonly signal: AbortSignal;
  /** Where libguestfs is; `null` where it is not installed. */
  readonly guestfs: () => Promise<InstalledGuestfs | null>;
}

/** What libguestfs is started for. */
const kindsOfGuestfs = new Set<FileSystemKind>(['xfs', 'btrfs', 'ntfs', 'fat', 'LVM', 'RAID']);
/** What volumes of their own stand on. */
const containers = new Set<FileSystemKind>(['LVM', 'RAID']);

/**
 * Finds the one file system in which all paths are.
 * @throws RestoreError FILE_NOT_FOUND, FILE_SYSTEM_UNCLEAR when several have them, FILE_SYSTEM_UNSUPPORTED when there is
 *   none that can be read on this host
 */
export async function findInFileSystems(search: FileSearch): Promise<FoundFiles> {
  const { look, directory, signal } = search;
  const located = await locateFileSystems(look, signal);
  const [ext, others] = [extOf(located, search), othersOf(located, search)];
  await using looking = new Looking(search.paths);
  for (const one of ext) await looking.lookIn(await openFileSystem(one, directory, signal));
  // The system partition of a UEFI guest is FAT, and seldom meant.
  const mustLook = others.some(({ kind }) => kind !== 'fat') || (!looking.hasFound && others.length > 0);
  const installed = mustLook ? await search.guestfs() : null;
  if (installed !== null) await lookByGuestfs(installed, search, others, looking);
  const found = looking.take();
  if (found !== null) return found;
  if (ext.length === 0 && installed === null) throw unsupported(located, others);
  throw notFound(search, looking, installed === null ? others : []);
}

async function lookByGuestfs(
  installed: InstalledGuestfs,
  search: FileSearch,
  others: readonly LocatedFileSystem[],
  looking: Looking,
): Promise<void> {
  const volumes = looking.use(await GuestfsVolumes.open(installed, search, search.signal));
  for (const one of volumes.fileSystems) {
    if (!isMeant(one, search, others)) continue;
    try {
      await looking.lookIn(await volumes.openFileSystem(one));
    } catch (error) {
      if (!(error instanceof RestoreError) || error.code !== 'FILE_SYSTEM_UNSUPPORTED') throw error;
      search.signal.throwIfAborted();
      looking.closed.push(error.message);
    }
  }
}

function extOf(
  located: readonly LocatedFileSystem[],
  { partition }: FileSystemChoice,
): readonly LocatedFileSystem[] {
  const isMeantBy = (one: LocatedFileSystem): boolean =>
    partition === undefined || String(one.partition) === partition;
  return located.filter((one) => one.kind === 'ext' && isMeantBy(one));
}

/** What may have what is chosen, and is for libguestfs. */
function othersOf(
  located: readonly LocatedFileSystem[],
  { partition }: FileSystemChoice,
): readonly LocatedFileSystem[] {
  const readable = located.filter(({ kind }) => kindsOfGuestfs.has(kind));
  if (partition === undefined) return readable;
  const [, number] = /^(\d+)(?::|$)/.exec(partition) ?? [];
  return readable.filter((one) =>
    number === undefined ? containers.has(one.kind) : String(one.partition) === number,
  );
}

/** What is not read by e2fsprogs already, and was chosen. */
function isMeant(
  { on, choice }: GuestfsFileSystem,
  { partition }: FileSystemChoice,
  others: readonly LocatedFileSystem[],
): boolean {
  const isOther = (one: LocatedFileSystem): boolean =>
    on !== null && one.volume.target === on.target && one.partition === on.partition;
  if (on !== null && !others.some(isOther)) return false;
  if (partition === undefined || partition === choice) return true;
  // Who names the partition of a volume group means what stands on it.
  return (
    on === null &&
    !choice.includes(':') &&
    others.some(({ kind }) => containers.has(kind)) &&
    /^\d+$/.test(partition)
  );
}

/** Goes through file systems until all are looked at. */
class Looking implements AsyncDisposable {
  readonly #paths: readonly string[];
  readonly #opened = new AsyncDisposableStack();
  #found: Omit<FoundFiles, typeof Symbol.asyncDispose> | null = null;
  readonly names: string[] = [];
  /** Those that could not be opened, with the reasons. */
  readonly closed: string[] = [];

  constructor(paths: readonly string[]) {
    this.#paths = paths;
  }

  get hasFound(): boolean {
    return this.#found !== null;
  }

  /** Keeps what is needed as long as what is found. */
  use<T extends AsyncDisposable>(needed: T): T {
    return this.#opened.use(needed);
  }

  /** @throws RestoreError FILE_SYSTEM_UNCLEAR when another one has all paths, too */
  async lookIn(open: OpenFileSystem): Promise<void> {
    await using one = new AsyncDisposableStack();
    one.use(open);
    this.names.push(open.name);
    const files: GuestFile[] = [];
    for (const path of this.#paths) {
      const file = await findGuestFile(open.tree, bytesOfPath(path));
      if (file === null) return;
      files.push(file);
    }
    if (this.#found !== null)
      throw new RestoreError(
        'FILE_SYSTEM_UNCLEAR',
        `${shownPath(bytesOfPath(this.#paths.join(', ')))}: in ${this.#found.name} and in ${shownPath(open.name)}`,
        {
          hint: 'choose with --volume TARGET and --partition NUMBER (0: the whole volume), NUMBER:SUBVOLUME or GROUP/VOLUME',
        },
      );
    this.#found = { tree: open.tree, name: shownPath(open.name), files };
    this.#opened.use(one.move());
  }

  /** What was found, which keeps all that it needs open; `null` for nothing. */
  take(): FoundFiles | null {
    if (this.#found === null) return null;
    const kept = this.#opened.move();
    return { ...this.#found, [Symbol.asyncDispose]: () => kept.disposeAsync() };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#opened.disposeAsync();
  }
}

function listOf(located: readonly LocatedFileSystem[]): string {
  return located.map(({ name, kind }) => `${name}: ${kind}`).join(', ');
}

function unsupported(
  located: readonly LocatedFileSystem[],
  others: readonly LocatedFileSystem[],
): RestoreError {
  if (others.length > 0)
    return new RestoreError(
      'FILE_SYSTEM_UNSUPPORTED',
      `${listOf(others)}: only libguestfs reads that, which is not installed`,
      { hint: installHint },
    );
  return new RestoreError(
    'FILE_SYSTEM_UNSUPPORTED',
    `no file system that can be read is there; found: ${listOf(located) || 'nothing'}`,
    {
      hint: 'choose others with --volume and --partition; stillpoint storage mount BACKUP DIR gives the volumes as raw files',
    },
  );
}

function notFound(
  { entry, paths }: FileSearch,
  { names, closed }: Looking,
  notLooked: readonly LocatedFileSystem[],
): RestoreError {
  const what = paths.length === 1 ? (paths[0] ?? '') : `all of ${paths.join(', ')}`;
  const missed = notLooked.length === 0 ? '' : `; not in ${listOf(notLooked)}, which needs libguestfs`;
  const shut = closed.length === 0 ? '' : `; ${closed.join('; ')}`;
  return new RestoreError(
    'FILE_NOT_FOUND',
    `${shownPath(bytesOfPath(what))} is not in this backup: looked in ${shownPath(names.join(', ')) || 'nothing'}${missed}${shut}`,
    {
      hint:
        notLooked.length > 0
          ? installHint
          : `stillpoint files ${entry.id ?? entry.directory} / lists what is there`,
    },
  );
}
