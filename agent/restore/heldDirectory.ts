import { constants, type Stats } from 'node:fs';
import { chmod, chown, mkdir, open, readdir, readlink, utimes, type FileHandle } from 'node:fs/promises';
import { isErrno } from '../../common/errors.ts';
import { RestoreError } from './errors.ts';
import { bytesOfPath, componentsOf, linksMax, shownPath } from './guestTree.ts';

/** Linux `O_PATH`: a reference to a place without opening what is there; Node has no name for it. */
const openPathOnly = 0o10000000;
const onlyItself = openPathOnly | constants.O_NOFOLLOW;
const stickyBit = 0o1000;

/**
 * A directory of the host that is held open: what is done in it by a name is done in this very one, whatever is put
 * under its path meanwhile by somebody who may do that. Paths are of bytes, one character for each (latin1).
 */
export class HeldDirectory implements AsyncDisposable {
  readonly #handle: FileHandle;
  /** How it was reached, as people are told. */
  readonly path: string;

  private constructor(handle: FileHandle, path: string) {
    this.#handle = handle;
    this.path = path;
  }

  /**
   * Opens a directory by an absolute path. For root every directory on the way must be one that nobody else can change
   * anything in, or a sticky one where what is next is root's: who else could put a link there decided where we write.
   * @param options.make makes what is missing, for us alone
   * @returns `null` when it is not there
   * @throws RestoreError WORK_DIRECTORY_UNSAFE; FILE_EXISTS: on the way is what is no directory
   */
  static async open(path: string, { make }: { readonly make: boolean }): Promise<HeldDirectory | null> {
    const ahead = [...componentsOf(bytesOfPath(path))];
    await using passed = new AsyncDisposableStack();
    let here = passed.use(await HeldDirectory.#root());
    let links = 0;
    for (let name = ahead.shift(); name !== undefined; name = ahead.shift()) {
      const next = await here.#step(name, make);
      if (next === null) return null;
      if (next instanceof HeldDirectory) {
        here = passed.use(next);
        continue;
      }
      links += 1;
      if (links > linksMax) throw inTheWay(here.pathOf(name), 'it leads through too many links');
      ahead.unshift(...componentsOf(next.leadsTo));
      if (next.leadsTo.startsWith('/')) here = passed.use(await HeldDirectory.#root());
    }
    return new HeldDirectory(await open(here.#self, openPathOnly), here.path);
  }

  static async #root(): Promise<HeldDirectory> {
    return new HeldDirectory(await open('/', onlyItself), '');
  }

  /** One step of the way to where files go, where links are followed. */
  async #step(name: string, make: boolean): Promise<HeldDirectory | { readonly leadsTo: string } | null> {
    const directory = await this.#handle.stat();
    let next = await this.#look(name);
    if (next === null) {
      requireSafe(this.path, directory, null);
      if (!make) return null;
      await this.#make(name);
      next = await open(this.place(name), onlyItself);
    }
    try {
      const found = await next.stat();
      requireSafe(this.path, directory, found);
      if (found.isDirectory()) return new HeldDirectory(next, this.pathOf(name));
      if (!found.isSymbolicLink()) throw inTheWay(this.pathOf(name), 'it is no directory');
      const leadsTo = (await readlink(this.place(name), 'buffer')).toString('latin1');
      await next.close();
      return { leadsTo };
    } catch (error) {
      await next.close();
      throw error;
    }
  }

  async #look(name: string): Promise<FileHandle | null> {
    try {
      return await open(this.place(name), onlyItself);
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return null;
      throw error;
    }
  }

  /** @returns false when there is something */
  async #make(name: string): Promise<boolean> {
    try {
      await mkdir(this.place(name), { mode: 0o700 });
      return true;
    } catch (error) {
      if (isErrno(error, 'EEXIST')) return false;
      throw error;
    }
  }

  /** What this name has; `null` for nothing. A link is itself. */
  async statOf(name: string): Promise<Stats | null> {
    await using found = await this.#look(name);
    return found === null ? null : await found.stat();
  }

  /** A directory in it. No link is followed. @throws RestoreError FILE_EXISTS when it is none */
  async inside(name: string): Promise<HeldDirectory> {
    const handle = await open(this.place(name), onlyItself);
    try {
      if (!(await handle.stat()).isDirectory()) throw inTheWay(this.pathOf(name), 'it is no directory');
      return new HeldDirectory(handle, this.pathOf(name));
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** The same, made for us alone where nothing is. @throws RestoreError FILE_EXISTS */
  async insideOrNew(name: string): Promise<{ readonly directory: HeldDirectory; readonly isNew: boolean }> {
    const made = await this.#make(name);
    const directory = await this.inside(name);
    // Who may rename what is in this directory could have put another one there, which keeps owner and mode then.
    return { directory, isNew: made && (await readdir(directory.#self)).length === 0 };
  }

  /** The path by which a name in it is used. */
  place(name: string): Buffer {
    return Buffer.from(`${this.#self}/${name}`, 'latin1');
  }

  /** The path of a name as people are told. */
  pathOf(name: string): string {
    return `${this.path}/${name}`;
  }

  get #self(): string {
    return `/proc/self/fd/${this.#handle.fd}`;
  }

  chown(uid: number, gid: number): Promise<void> {
    return chown(this.#self, uid, gid);
  }

  chmod(mode: number): Promise<void> {
    return chmod(this.#self, mode);
  }

  utimes(accessedAt: Date, modifiedAt: Date): Promise<void> {
    return utimes(this.#self, accessedAt, modifiedAt);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#handle.close();
  }
}

/** Gives a symbolic link its owner and time, and nothing else that was put in its place. */
export async function dressLink(
  place: Buffer,
  owner: { readonly uid: number; readonly gid: number } | null,
  modifiedAt: Date,
): Promise<void> {
  await using link = await open(place, onlyItself);
  if (!(await link.stat()).isSymbolicLink())
    throw new RestoreError('FILE_EXISTS', 'somebody else has replaced a link that was just made', {
      hint: 'choose with --to a directory that only root can change',
    });
  // The path of the handle leads to the link itself, proc(5).
  const itself = `/proc/self/fd/${link.fd}`;
  if (owner !== null) await chown(itself, owner.uid, owner.gid);
  await utimes(itself, modifiedAt, modifiedAt);
}

/** Nobody but root decides what is in a directory, or what this name in it is. */
function requireSafe(path: string, directory: Stats, inside: Stats | null): void {
  if (process.geteuid?.() !== 0) return;
  const { uid, mode } = directory;
  const isSticky = (mode & stickyBit) !== 0;
  if (uid === 0 && ((mode & 0o022) === 0 || (isSticky && (inside === null || inside.uid === 0)))) return;
  const shown = shownPath(path) || '/';
  throw new RestoreError('WORK_DIRECTORY_UNSAFE', `others than root can change what is in ${shown}`, {
    hint: `ls -ld ${shown}; choose with --to a directory above which all are root's, such as /root/files`,
  });
}

/** @param path of bytes */
export function inTheWay(path: string, why: string): RestoreError {
  return new RestoreError('FILE_EXISTS', `${shownPath(path)} is there: ${why}`, {
    hint: 'choose another directory with --to, or replace files with --force (directories and links on the way are never)',
  });
}
