import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import {
  chmod,
  chown,
  lstat,
  mkdir,
  open,
  readFile,
  realpath,
  rename,
  rm,
  stat,
  statfs,
} from 'node:fs/promises';
import { basename, dirname, join, relative, resolve, sep } from 'node:path';
import { isErrno } from './errors.ts';

/*
 * What a file system needs to be told so that an acknowledged change survives a power loss: the data of a
 * file by fsync of the file, its name by fsync of the directory that holds it. Functions here throw the
 * system's own errors (`ENOSPC`, `EROFS`, …); the modules that use them say what they mean.
 */

/** Linux `O_PATH`: a reference to a place without opening what is there; Node has no name for it. */
const openPathOnly = 0o10000000;

/** Brings the data of a file (or the names in a directory) to the disk. */
export async function fsyncFile(path: string): Promise<void> {
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Brings the names in a directory to the disk. Throws ENOTDIR for anything else. */
export async function fsyncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** True for the names that `writeFileDurable` leaves behind when its process is killed. */
export function isTemporaryName(name: string): boolean {
  return /^\..+\.[0-9a-f]{16}\.tmp$/.test(name);
}

/**
 * Writes a small file so that its name shows either the old content or the whole new one, also after a power
 * loss. Replaces an existing file.
 *
 * @param options.mode permission bits, applied whatever the umask is; 0600 unless told.
 */
export async function writeFileDurable(
  path: string,
  data: string | Uint8Array,
  options: { readonly mode?: number | undefined } = {},
): Promise<void> {
  const directory = dirname(path);
  const temporary = join(directory, `.${basename(path).slice(0, 200)}.${randomBytes(8).toString('hex')}.tmp`);
  const file = await open(temporary, 'wx', 0o600);
  try {
    try {
      await file.writeFile(data);
      await file.chmod(options.mode ?? 0o600);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await removeUnfinished(temporary);
    throw error;
  }
  await fsyncDirectory(directory);
}

/**
 * Takes a file away that an error has left unfinished. That error is what counts: a file system that has just failed may
 * fail here, too, which would only hide why. What stays has a name by which it is found and removed later.
 */
export async function removeUnfinished(path: string): Promise<void> {
  try {
    await rm(path, { force: true });
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error;
  }
}

/**
 * Renames and brings both directories to the disk. Replaces what `to` names, as rename(2) does: where that
 * must not happen, the caller looks first. Throws EXDEV across file systems.
 */
export async function renameDurable(from: string, to: string): Promise<void> {
  await rename(from, to);
  // The new name first: if only one of the two survives, it must be this one.
  await fsyncDirectory(dirname(to));
  if (dirname(from) !== dirname(to)) await fsyncDirectory(dirname(from));
}

/** True when there is something under this name; a symbolic link counts, wherever it points. */
export async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return false;
    throw error;
  }
}

/** The path itself, or the nearest directory above it that is there. */
export async function nearestExisting(path: string): Promise<string> {
  let candidate = resolve(path);
  while (candidate !== dirname(candidate)) {
    try {
      await stat(candidate);
      return candidate;
    } catch (error) {
      if (!isErrno(error, 'ENOENT') && !isErrno(error, 'ENOTDIR')) throw error;
      candidate = dirname(candidate);
    }
  }
  return candidate;
}

/**
 * A path with the links resolved that lead to the directory it is in; what is not there yet stays as it was typed. The
 * last name is not looked at: it may be a mount whose server is dead.
 */
export async function canonicalPath(path: string): Promise<string> {
  const absolute = resolve(path);
  const there = await nearestExisting(dirname(absolute));
  return join(await realpath(there), relative(there, absolute));
}

/** Device and mount of a place: rename(2) refuses to cross either of them. */
async function placeOf(path: string): Promise<string> {
  const place = await open(await nearestExisting(path), openPathOnly);
  try {
    const { dev } = await place.stat();
    const info = await readFile(`/proc/self/fdinfo/${place.fd}`, 'utf8');
    const mount = /^mnt_id:\s*(\d+)$/m.exec(info)?.[1];
    if (mount === undefined) throw new Error(`no mnt_id in the kernel's fdinfo of ${path}`);
    return `${dev}:${mount}`;
  } finally {
    await place.close();
  }
}

/**
 * True when a rename between the two works: same file system and same mount (two bind mounts of one file
 * system share a device number and yet refuse renames). Paths that are not there yet count as their nearest
 * existing directory.
 */
export async function sameFileSystem(a: string, b: string): Promise<boolean> {
  return (await placeOf(a)) === (await placeOf(b));
}

/**
 * True when two paths, which may not be there yet, are on one file system, so that one fault of a disk loses both: also
 * where a bind mount keeps files from being moved between them.
 */
export async function sameDevice(a: string, b: string): Promise<boolean> {
  const [first, second] = [await stat(await nearestExisting(a)), await stat(await nearestExisting(b))];
  return first.dev === second.dev;
}

/** Bytes that can still be written below a path (which may not be there yet). */
export async function freeBytes(path: string): Promise<number> {
  const { bavail, bsize } = await statfs(await nearestExisting(path));
  return bavail * bsize;
}

/**
 * Creates a directory and all that is missing above it; every new name is on the disk when it returns. What
 * is there already keeps its mode.
 *
 * @param mode permission bits of the directories that are created, applied whatever the umask is.
 */
export async function makeDirectoryDurable(path: string, mode = 0o755): Promise<void> {
  const target = resolve(path);
  for (let attempt = 1; ; attempt += 1) {
    try {
      await makeEach(target, mode);
      return;
    } catch (error) {
      // One above it was there, and another job has removed it because it was empty.
      if (!isErrno(error, 'ENOENT') || attempt === makeAttemptsMax) throw error;
    }
  }
}

/** So often another job may take an empty directory away while we make ours in it. */
const makeAttemptsMax = 10;

async function makeEach(target: string, mode: number): Promise<void> {
  const existing = await nearestExisting(target);
  // A directory whose maker was killed before its fsync is there without being durable.
  if (existing !== dirname(existing)) await fsyncDirectory(dirname(existing));
  let current = existing;
  for (const name of relative(existing, target).split(sep).filter(Boolean)) {
    const parent = current;
    current = join(parent, name);
    try {
      await mkdir(current, { mode });
      await chmod(current, mode);
    } catch (error) {
      if (!isErrno(error, 'EEXIST')) throw error;
    }
    await fsyncDirectory(parent);
  }
  await fsyncDirectory(target);
}

/** True when `path` lies below `root` (not the root itself), by the letters of both paths. */
export function isBelow(root: string, path: string): boolean {
  const way = relative(resolve(root), resolve(path));
  return way !== '' && way !== '..' && !way.startsWith(`..${sep}`);
}

/**
 * Removes a tree that must lie below `root`, symbolic links in between resolved; links in the tree are
 * removed, never followed. A missing tree is fine.
 *
 * @throws Error when the tree is not below the root: that is a programming error, nothing is touched.
 */
export async function removeTree(path: string, options: { readonly root: string }): Promise<void> {
  if (!(await exists(path))) return;
  const parent = await realpath(dirname(path));
  const place = join(parent, basename(path));
  if (!isBelow(await realpath(options.root), place)) {
    throw new Error(`refusing to remove ${path}: it is not below ${options.root}`);
  }
  await rm(place, { recursive: true, force: true });
  try {
    await fsyncDirectory(parent);
  } catch (error) {
    // Now that it was empty, another job has removed it.
    if (!isErrno(error, 'ENOENT')) throw error;
  }
}

/** Owner, group and permission bits of a file. */
export interface Ownership {
  readonly uid: number;
  readonly gid: number;
  /** Permission bits only (07777). */
  readonly mode: number;
}

/** Owner, group and mode of what a path leads to (links are followed). */
export async function readOwnership(path: string): Promise<Ownership> {
  const { uid, gid, mode } = await stat(path);
  return { uid, gid, mode: mode & 0o7777 };
}

/** Gives a file owner, group and mode; the owner first, because chown(2) clears set-id bits. */
export async function applyOwnership(path: string, ownership: Ownership): Promise<void> {
  await chown(path, ownership.uid, ownership.gid);
  await chmod(path, ownership.mode);
}
