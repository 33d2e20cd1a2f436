import { randomBytes } from 'node:crypto';
import { link, open, rename, rm, symlink, type FileHandle } from 'node:fs/promises';
import { writeFully } from '../../common/copy.ts';
import { isErrno } from '../../common/errors.ts';
import { RestoreError } from './errors.ts';
import { componentsOf, type GuestFile, type GuestTree, shownPath } from './guestTree.ts';
import { dressLink, HeldDirectory, inTheWay } from './heldDirectory.ts';

/*
 * Files of a guest, written below a directory of the host. Names and modes come from the guest: nothing is written but
 * below that directory, no link there is followed, and nothing gets rights that the guest's root had in the guest only.
 */

/** What was taken out. */
export interface Extracted {
  files: number;
  directories: number;
  links: number;
  bytes: number;
  /** Devices, sockets and pipes, which mean nothing here, by their paths in the guest. */
  readonly skipped: string[];
  /** What is in a directory that was asked for, and could not be read, with the reason. */
  readonly unreadable: string[];
  /** Files that lost set-user-ID or set-group-ID. */
  readonly withoutSetId: string[];
}

export interface ExtractionOptions {
  /** Where files go, each by its path in the guest; absolute. */
  readonly to: string;
  /** Files that are there are replaced, and directories are added to. */
  readonly force: boolean;
  readonly signal: AbortSignal;
}

const setIdBits = 0o6000;
const pieceBytes = 64 * 1024;
const zeros = Buffer.alloc(pieceBytes);
/** PATH_MAX of Linux without the final zero; it bounds how many directories are held open, too. */
const pathBytesMax = 4095;

/** Takes files out of a file system of a guest, one after the other. */
export class FileExtraction {
  readonly #tree: GuestTree;
  readonly #options: ExtractionOptions;
  readonly #keepsOwners = process.geteuid?.() === 0;
  /** Inodes of the directories that were taken out for the path that is being extracted. */
  readonly #entered = new Set<number>();
  readonly extracted: Extracted = {
    files: 0,
    directories: 0,
    links: 0,
    bytes: 0,
    skipped: [],
    unreadable: [],
    withoutSetId: [],
  };

  constructor(tree: GuestTree, options: ExtractionOptions) {
    this.#tree = tree;
    this.#options = options;
  }

  /**
   * Makes sure that nothing is in the way of a file, before anything is written.
   * @param path in the guest
   * @throws RestoreError FILE_EXISTS, WORK_DIRECTORY_UNSAFE
   */
  async requireRoom(path: string): Promise<void> {
    await using passed = new AsyncDisposableStack();
    let directory = await HeldDirectory.open(this.#options.to, { make: false });
    if (directory === null) return;
    passed.use(directory);
    const { above, name } = splitPath(path);
    for (const one of above) {
      if ((await directory.statOf(one)) === null) return;
      directory = passed.use(await directory.inside(one));
    }
    if (this.#options.force || name === null || (await directory.statOf(name)) === null) return;
    throw inTheWay(directory.pathOf(name), 'nothing is overwritten');
  }

  /**
   * Takes a file, or a directory with all that is in it, to the place below `to` that its path names.
   * @param path in the guest, of `file`
   * @throws RestoreError FILE_EXISTS, WORK_DIRECTORY_UNSAFE, FILE_UNREADABLE, NOT_ENOUGH_DISK_SPACE, COPY_FAILED; the
   *   reason of the signal
   */
  async extract(path: string, file: GuestFile): Promise<void> {
    await using passed = new AsyncDisposableStack();
    const to = await HeldDirectory.open(this.#options.to, { make: true });
    if (to === null) throw new Error(`${this.#options.to} was made and is not there`);
    let directory = passed.use(to);
    const { above, name } = splitPath(path);
    this.#entered.clear();
    for (const one of above) directory = passed.use((await directory.insideOrNew(one)).directory);
    // The root of the guest's file system is `to` itself.
    if (name === null) await this.#writeInto(directory, '', file);
    else await this.#write({ directory, name, path: `/${[...above, name].join('/')}` }, file);
  }

  async #write(place: Place, file: GuestFile): Promise<void> {
    this.#options.signal.throwIfAborted();
    if (file.kind === 'special') {
      this.extracted.skipped.push(place.path);
      return;
    }
    try {
      if (file.kind === 'directory') await this.#writeDirectory(place, file);
      else if (file.kind === 'link') await this.#writeLink(place, file);
      else await this.#writeFile(place, file);
    } catch (error) {
      throw writeError(error, place);
    }
  }

  /** One file that cannot be read keeps nobody from the others. */
  async #writeInside(directory: HeldDirectory, path: string, file: GuestFile): Promise<void> {
    const { kind, name } = file;
    if (kind === 'nameless') {
      this.extracted.unreadable.push(`${path || '/'}: ${name}`);
      return;
    }
    const place = { directory, name, path: `${path}/${name}` };
    try {
      requireName(name);
      if (directory.pathOf(name).length > pathBytesMax) throw unreadable(name, 'its path is too long');
      await this.#write(place, file);
    } catch (error) {
      if (!(error instanceof RestoreError) || error.code !== 'FILE_UNREADABLE') throw error;
      this.extracted.unreadable.push(`${place.path}: ${error.message}`);
    }
  }

  async #writeDirectory(place: Place, file: GuestFile): Promise<void> {
    // A directory has one place; one that is in itself has no end.
    if (this.#entered.has(file.inode))
      throw unreadable(place.name, 'this directory is in another place, too');
    this.#entered.add(file.inode);
    // Until all is in it, it is ours alone.
    const { directory, isNew } = await place.directory.insideOrNew(place.name);
    await using _ = directory;
    await this.#writeInto(directory, place.path, file);
    if (!isNew) return;
    const { modifiedAt } = await this.#tree.details(file);
    if (this.#keepsOwners) await directory.chown(file.uid, file.gid);
    await directory.chmod(file.mode & ~setIdBits);
    await directory.utimes(modifiedAt, modifiedAt);
  }

  async #writeInto(directory: HeldDirectory, path: string, file: GuestFile): Promise<void> {
    for (const inside of await this.#tree.list(file)) await this.#writeInside(directory, path, inside);
    this.extracted.directories += 1;
  }

  async #writeLink(place: Place, file: GuestFile): Promise<void> {
    const { leadsTo, modifiedAt } = await this.#tree.details(file);
    if (leadsTo === null || leadsTo === '' || leadsTo.includes('\0'))
      throw unreadable(place.name, 'the link leads to no path');
    const target = Buffer.from(leadsTo, 'latin1');
    await this.#put(place, async (temporary) => {
      await symlink(target, temporary);
      await dressLink(temporary, this.#keepsOwners ? file : null, modifiedAt);
    });
    this.extracted.links += 1;
  }

  async #writeFile(place: Place, file: GuestFile): Promise<void> {
    const { modifiedAt } = await this.#tree.details(file);
    await this.#put(place, async (temporary) => {
      const written = await open(temporary, 'wx', 0o600);
      try {
        const bytes = await this.#writeContent(written, file);
        if (this.#keepsOwners) await written.chown(file.uid, file.gid);
        // After the owner, whose change clears set-id bits.
        await written.chmod(file.mode & ~setIdBits);
        await written.utimes(modifiedAt, modifiedAt);
        await written.sync();
        this.extracted.bytes += bytes;
      } finally {
        await written.close();
      }
    });
    this.extracted.files += 1;
    if ((file.mode & setIdBits) !== 0) this.extracted.withoutSetId.push(place.path);
  }

  /** @returns how many bytes it has */
  async #writeContent(written: FileHandle, file: GuestFile): Promise<number> {
    let bytes = 0;
    for await (const chunk of this.#tree.content(file)) {
      for (let at = 0; at < chunk.length; at += pieceBytes) {
        const piece = chunk.subarray(at, at + pieceBytes);
        // Holes stay holes: a guest can claim more zeros than any disk has room for.
        if (!piece.equals(zeros.subarray(0, piece.length))) await writeFully(written, piece, bytes);
        bytes += piece.length;
      }
    }
    await written.truncate(bytes);
    return bytes;
  }

  /** A name shows a whole file or none; one that is there is replaced only where that was asked for. */
  async #put({ directory, name }: Place, write: (temporary: Buffer) => Promise<void>): Promise<void> {
    const place = directory.place(name);
    const temporary = directory.place(`.stillpoint-${randomBytes(8).toString('hex')}.tmp`);
    try {
      await write(temporary);
      if (this.#options.force) await rename(temporary, place);
      else await link(temporary, place);
    } catch (error) {
      if (isErrno(error, 'EEXIST') || isErrno(error, 'EISDIR'))
        throw inTheWay(directory.pathOf(name), 'nothing is overwritten');
      throw error;
    } finally {
      await rm(temporary, { force: true });
    }
  }
}

/** Where a file goes. */
interface Place {
  readonly directory: HeldDirectory;
  readonly name: string;
  /** In the guest, for who is told of it. */
  readonly path: string;
}

/** What the system says of a path that only we have means nothing to anybody. */
function writeError(error: unknown, { directory, name }: Place): unknown {
  if (!(error instanceof Error && 'syscall' in error)) return error;
  if (isErrno(error, 'ENAMETOOLONG')) return unreadable(name, 'its name or target is too long here');
  const isFull = isErrno(error, 'ENOSPC') || isErrno(error, 'EDQUOT');
  const place = shownPath(directory.pathOf(name));
  const why = error.message.replaceAll(/ '\/proc\/self\/fd\/.*/gs, '');
  return new RestoreError(
    isFull ? 'NOT_ENOUGH_DISK_SPACE' : 'COPY_FAILED',
    `${place} cannot be written: ${shownPath(why)}`,
    {
      cause: error,
      hint: `df -h and findmnt -T ${shownPath(directory.path) || '/'}; or choose another directory with --to`,
    },
  );
}

/** @returns `name: null` for the root. @throws RestoreError FILE_UNREADABLE */
function splitPath(path: string): { readonly above: readonly string[]; readonly name: string | null } {
  const names = componentsOf(path);
  for (const name of names) requireName(name);
  return { above: names.slice(0, -1), name: names.at(-1) ?? null };
}

/** A name with a separator in it, or that leads upwards, is none that a guest can use. */
function requireName(name: string): void {
  if (name === '' || name === '.' || name === '..' || /[/\0]/.test(name))
    throw unreadable(name, 'it is no name of a file');
}

function unreadable(name: string, why: string): RestoreError {
  return new RestoreError('FILE_UNREADABLE', `${shownPath(name)} cannot be taken out: ${why}`, {
    hint: 'the file system of the guest is damaged, or the file cannot be on this host',
  });
}
