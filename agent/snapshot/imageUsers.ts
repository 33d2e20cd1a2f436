import type { BigIntStats } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { isErrno } from '../../common/errors.ts';

/** A process that has a file open. */
export interface FileUser {
  readonly pid: number;
  readonly command: string;
}

/**
 * Finds the processes that have a file open for writing, by its device and inode, but not the QEMU of the
 * machine `uuid` itself. Another writer would make the restore fail on its lock, in the middle of the pause.
 */
export async function foreignWriters(file: string, uuid: string): Promise<readonly FileUser[]> {
  return foreignUsers(file, uuid, false);
}

/** The same, and every QEMU that only reads the file: a guest that stands on it as its backing file. */
export async function foreignGuests(file: string, uuid: string): Promise<readonly FileUser[]> {
  const writers = await foreignWriters(file, uuid);
  const readers = await foreignUsers(file, uuid, true);
  const known = new Set(writers.map(({ pid }) => pid));
  const isGuest = ({ pid, command }: FileUser): boolean =>
    !known.has(pid) && basename(command).startsWith('qemu-system');
  return [...writers, ...readers.filter(isGuest)];
}

/** The QEMU of a machine, whatever libvirt knows of it, when it has a file open for writing. */
export async function ownQemu(file: string, uuid: string): Promise<FileUser | undefined> {
  const users = await usersOf(file, false, (args) => args.includes(uuid));
  return users.find(({ command }) => basename(command).startsWith('qemu'));
}

async function foreignUsers(file: string, uuid: string, readers: boolean): Promise<readonly FileUser[]> {
  return usersOf(file, readers, (args) => !args.includes(uuid));
}

async function usersOf(
  file: string,
  readers: boolean,
  isMeant: (args: readonly string[]) => boolean,
): Promise<readonly FileUser[]> {
  const wanted = await stat(file, { bigint: true });
  const users: FileUser[] = [];
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    if (!(await hasOpen(entry, wanted, readers))) continue;
    const command = (await readProcess(entry, 'cmdline')) ?? '';
    const args = command.split('\0').filter((part) => part !== '');
    if (!isMeant(args)) continue;
    users.push({ pid: Number(entry), command: args[0] ?? 'unknown' });
  }
  return users;
}

async function hasOpen(pid: string, wanted: BigIntStats, readers: boolean): Promise<boolean> {
  const descriptors = await gone(readdir(`/proc/${pid}/fd`));
  for (const descriptor of descriptors ?? []) {
    // fdinfo asks no file system: a stat of a descriptor on a dead network mount would hang.
    const info = (await readProcess(pid, `fdinfo/${descriptor}`)) ?? '';
    const flags = Number.parseInt(/^flags:\s*(\d+)/m.exec(info)?.[1] ?? '0', 8);
    // O_ACCMODE: anything but O_RDONLY writes.
    if ((flags & 3) === 0 && !readers) continue;
    const inode = /^ino:\s*(\d+)/m.exec(info)?.[1]; // since Linux 5.14
    // QEMU has device nodes of its own: a device is known by its number, not by its node.
    const device = wanted.isBlockDevice();
    if (!device && inode !== undefined && BigInt(inode) !== wanted.ino) continue;
    const found = await gone(stat(`/proc/${pid}/fd/${descriptor}`, { bigint: true }));
    if (found === undefined) continue;
    if (device ? isDevice(found, wanted.rdev) : found.dev === wanted.dev && found.ino === wanted.ino)
      return true;
  }
  return false;
}

function isDevice(found: BigIntStats, rdev: bigint): boolean {
  return found.isBlockDevice() && found.rdev === rdev;
}

function readProcess(pid: string, name: string): Promise<string | undefined> {
  return gone(readFile(`/proc/${pid}/${name}`, 'utf8'));
}

/** Processes end while we look at them; that is not an error. */
async function gone<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch (error) {
    if (
      isErrno(error, 'ENOENT') ||
      isErrno(error, 'ESRCH') ||
      isErrno(error, 'EACCES') ||
      isErrno(error, 'ENXIO')
    ) {
      return undefined;
    }
    throw error;
  }
}
