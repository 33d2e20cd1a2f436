import { readdir, readFile, readlink, realpath, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { RestoreError } from './errors.ts';

/** A block device as the kernel knows it. */
export interface BlockDevice {
  /** With symbolic links resolved: names below `/dev/disk` may lead elsewhere tomorrow. */
  readonly path: string;
  readonly sizeBytes: number;
  /** Numbers of the device, of its partitions and of the disk that it is a partition of, as `rdev` has them. */
  readonly related: ReadonlySet<bigint>;
}

/**
 * Looks at a block device that is to be overwritten. Changes and opens nothing.
 * @throws RestoreError DEVICE_UNSUITABLE for anything else, and for one that may only be read
 */
export async function readBlockDevice(name: string): Promise<BlockDevice> {
  const path = await resolved(name);
  const status = await stat(path, { bigint: true });
  if (!status.isBlockDevice()) throw unsuitable(`${name} is not a block device`);
  const directory = await realpath(`/sys/dev/block/${numbersOf(status.rdev)}`);
  if ((await numberIn(join(directory, 'ro'))) !== 0)
    throw unsuitable(`${path} can only be read`, `blockdev --setrw ${path}`);
  const related = new Set([status.rdev]);
  for (const entry of await readdir(directory)) await addRelated(join(directory, entry), related);
  if ((await readOrNull(join(directory, 'partition'))) !== null)
    await addRelated(join(directory, '..'), related, false);
  // The kernel counts in sectors of 512 bytes, whatever those of the device are.
  return { path, sizeBytes: (await numberIn(join(directory, 'size'))) * 512, related };
}

/** A process that has a device open, by whatever name. */
export interface DeviceUser {
  readonly pid: number;
  readonly command: string;
}

/** Processes other than this one that have a device, a partition of it, or the disk that it is on, open. */
export async function usersOfDevice(
  { related }: BlockDevice,
  signal: AbortSignal,
): Promise<readonly DeviceUser[]> {
  const users: DeviceUser[] = [];
  for (const pid of await readdir('/proc')) {
    signal.throwIfAborted();
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    if (!(await hasOpen(pid, related))) continue;
    const command = (await readOrNull(`/proc/${pid}/cmdline`)) ?? '';
    users.push({ pid: Number(pid), command: command.split('\0')[0] ?? '' });
  }
  return users;
}

async function hasOpen(pid: string, related: ReadonlySet<bigint>): Promise<boolean> {
  try {
    for (const descriptor of await readdir(`/proc/${pid}/fd`)) {
      const path = `/proc/${pid}/fd/${descriptor}`;
      // A stat of a file on a dead network mount would hang. Not only at the beginning: a chroot has devices of its own.
      if ((await readlinkOrNull(path))?.includes('/dev/') !== true) continue;
      const status = await statOrNull(path);
      if (status?.isBlockDevice() === true && related.has(status.rdev)) return true;
    }
  } catch (error) {
    // Processes end while we look at them.
    if (!isErrno(error, 'ENOENT') && !isErrno(error, 'ESRCH')) throw error;
  }
  return false;
}

/** True when a path leads to a device, or to a part of it. */
export async function leadsTo({ related }: BlockDevice, path: string): Promise<boolean> {
  const status = await statOrNull(path);
  return status?.isBlockDevice() === true && related.has(status.rdev);
}

async function resolved(name: string): Promise<string> {
  try {
    return await realpath(name);
  } catch (error) {
    if (!isErrno(error, 'ENOENT') && !isErrno(error, 'ENOTDIR')) throw error;
    throw unsuitable(`there is no device ${name}`);
  }
}

/** @param onlyPartitions of all that stands in a device's directory, only its partitions are related */
async function addRelated(directory: string, related: Set<bigint>, onlyPartitions = true): Promise<void> {
  if (onlyPartitions && (await readOrNull(join(directory, 'partition'))) === null) return;
  const [major, minor] = ((await readOrNull(join(directory, 'dev'))) ?? '').trim().split(':');
  if (major !== undefined && minor !== undefined) related.add(rdevOf(BigInt(major), BigInt(minor)));
}

/** As glibc packs them, see makedev(3). */
function rdevOf(major: bigint, minor: bigint): bigint {
  return (minor & 0xffn) | ((major & 0xfffn) << 8n) | ((minor & ~0xffn) << 12n) | ((major & ~0xfffn) << 32n);
}

function numbersOf(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn & 0xffffffffn);
  return `${major}:${minor}`;
}

async function numberIn(file: string): Promise<number> {
  return Number(await readFile(file, 'utf8'));
}

async function readOrNull(file: string): Promise<string | null> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ESRCH', 'EISDIR'].some((code) => isErrno(error, code))) return null;
    throw error;
  }
}

function statOrNull(path: string) {
  return orNull(stat(path, { bigint: true }));
}

function readlinkOrNull(path: string) {
  return orNull(readlink(path));
}

async function orNull<T>(looking: Promise<T>): Promise<T | null> {
  try {
    return await looking;
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EACCES', 'ESRCH'].some((code) => isErrno(error, code))) return null;
    throw error;
  }
}

function unsuitable(message: string, hint = 'lsblk --paths lists block devices'): RestoreError {
  return new RestoreError('DEVICE_UNSUITABLE', message, { hint });
}
