import { randomBytes } from 'node:crypto';
import {
  chmod,
  chown,
  lchown,
  link,
  lstat,
  lutimes,
  mkdir,
  open,
  rename,
  rm,
  symlink,
  utimes,
} from 'node:fs/promises';
import { writeFully } from '../../common/copy.ts';
import { isErrno } from '../../common/errors.ts';
import { RestoreError } from './errors.ts';
import { componentsOf, type GuestFile, type GuestTree } from './guestTree.ts';

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
  /** Where files go, each by its path in the guest. */
  readonly to: string;
  /** Files that are there are replaced, and directories are added to. */
  readonly force: boolean;
  readonly signal: AbortSignal;
}

/** Paths of a guest are bytes: one character for each. */
export function bytesOfPath(path: string): string {
  return Buffer.from(path, 'utf8').toString('latin1');
}

/** A path of a guest as people read it, with nothing in it that speaks to a terminal. */
export function shownPath(path: string): string {
  return Buffer.from(path, 'latin1')
    .toString('utf8')
    .replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '?');
}

const setIdBits = 0o6000;
const pieceBytes = 64 * 1024;
const zeros = Buffer.alloc(pieceBytes);

/** Takes files out of a file system of a guest, one after the other. */
export class FileExtraction {
  readonly #tree: GuestTree;
  readonly #options: ExtractionOptions;
  readonly #keepsOwners = process.geteuid?.() === 0;
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
   * @throws RestoreError FILE_EXISTS
   */
  async requireRoom(path: string): Promise<void> {
    const names = componentsOf(path);
    for (let count = 1; count <= names.length; count += 1) {
      const place = this.#placeOf(names.slice(0, count).join('/'));
      const found = await lookAt(place);
      if (found === null) return;
      const isLast = count === names.length;
      if (!isLast && !found.isDirectory()) throw inTheWay(place, 'it is no directory');
      if (isLast && !this.#options.force) throw inTheWay(place, 'nothing is overwritten');
    }
  }

  /**
   * Takes a file, or a directory with all that is in it, to the place below `to` that its path names.
   * @param path in the guest, of `file`
   * @throws RestoreError FILE_EXISTS, FILE_UNREADABLE; the system's own errors; the reason of the signal
   */
  async extract(path: string, file: GuestFile): Promise<void> {
    const names = componentsOf(path);
    await mkdir(this.#options.to, { recursive: true, mode: 0o700 });
    for (let count = 1; count < names.length; count += 1)
      await this.#makeDirectory(this.#placeOf(names.slice(0, count).join('/')));
    await this.#write(names.join('/'), file);
  }

  /** A name with a separator in it, or that leads upwards, is none that a guest can use. */
  #placeOf(path: string): Buffer {
    const names = componentsOf(path);
    if (names.some((name) => name === '..' || name.includes('\0')))
      throw new RestoreError('FILE_UNREADABLE', `${shownPath(path)} is no path of a file`);
    return Buffer.concat([Buffer.from(this.#options.to), Buffer.from(`/${names.join('/')}`, 'latin1')]);
  }

  async #write(path: string, file: GuestFile): Promise<void> {
    this.#options.signal.throwIfAborted();
    if (file.kind === 'special') {
      this.extracted.skipped.push(`/${path}`);
      return;
    }
    if (file.kind === 'directory') return this.#writeDirectory(path, file);
    if (file.kind === 'link') return this.#writeLink(path, file);
    return this.#writeFile(path, file);
  }

  /** One file that cannot be read keeps nobody from the others. */
  async #writeInside(path: string, file: GuestFile): Promise<void> {
    if (file.kind === 'nameless') {
      this.extracted.unreadable.push(`/${path}: ${file.name}`);
      return;
    }
    try {
      await this.#write(`${path}/${file.name}`, file);
    } catch (error) {
      if (!(error instanceof RestoreError) || error.code !== 'FILE_UNREADABLE') throw error;
      this.extracted.unreadable.push(`/${path}/${file.name}: ${error.message}`);
    }
  }

  async #writeDirectory(path: string, directory: GuestFile): Promise<void> {
    const place = this.#placeOf(path);
    // Until all is in it, it is ours alone: nobody can put a link where we are about to write.
    const isNew = await this.#makeDirectory(place);
    for (const file of await this.#tree.list(directory)) await this.#writeInside(path, file);
    this.extracted.directories += 1;
    if (!isNew) return;
    const { modifiedAt } = await this.#tree.details(directory);
    if (this.#keepsOwners) await chown(place, directory.uid, directory.gid);
    await chmod(place, directory.mode & ~setIdBits);
    await utimes(place, modifiedAt, modifiedAt);
  }

  /** @returns whether it was not there. @throws RestoreError FILE_EXISTS */
  async #makeDirectory(place: Buffer): Promise<boolean> {
    try {
      await mkdir(place, { mode: 0o700 });
      return true;
    } catch (error) {
      if (!isErrno(error, 'EEXIST')) throw error;
    }
    if ((await lookAt(place))?.isDirectory() === true) return false;
    throw inTheWay(place, 'it is no directory');
  }

  async #writeLink(path: string, file: GuestFile): Promise<void> {
    const { leadsTo, modifiedAt } = await this.#tree.details(file);
    const target = Buffer.from(leadsTo ?? '', 'latin1');
    await this.#put(this.#placeOf(path), async (temporary) => {
      await symlink(target, temporary);
      if (this.#keepsOwners) await lchown(temporary, file.uid, file.gid);
      await lutimes(temporary, modifiedAt, modifiedAt);
    });
    this.extracted.links += 1;
  }

  async #writeFile(path: string, file: GuestFile): Promise<void> {
    const { modifiedAt } = await this.#tree.details(file);
    await this.#put(this.#placeOf(path), async (temporary) => {
      const written = await open(temporary, 'wx', 0o600);
      try {
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
    if ((file.mode & setIdBits) !== 0) this.extracted.withoutSetId.push(`/${path}`);
  }

  /** A name shows a whole file or none; one that is there is replaced only where that was asked for. */
  async #put(place: Buffer, write: (temporary: Buffer) => Promise<void>): Promise<void> {
    const directory = place.subarray(0, place.lastIndexOf('/') + 1);
    const name = `.stillpoint-${randomBytes(8).toString('hex')}.tmp`;
    const temporary = Buffer.concat([directory, Buffer.from(name)]);
    try {
      await write(temporary);
      if (this.#options.force) await rename(temporary, place);
      else await link(temporary, place);
    } catch (error) {
      if (isErrno(error, 'EEXIST') || isErrno(error, 'EISDIR'))
        throw inTheWay(place, 'nothing is overwritten');
      throw error;
    } finally {
      await rm(temporary, { force: true });
    }
  }
}

async function lookAt(place: Buffer) {
  try {
    return await lstat(place);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return null;
    throw error;
  }
}

function inTheWay(place: Buffer, why: string): RestoreError {
  return new RestoreError('FILE_EXISTS', `${shownPath(place.toString('latin1'))} is there: ${why}`, {
    hint: 'choose another directory with --to, or replace files with --force (directories and links on the way are never)',
  });
}
