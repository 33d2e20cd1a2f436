import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { sameFileSystem } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import type { PlannedVolume } from '../snapshot/plan.ts';
import { MergeError } from './errors.ts';

/** A guest needs room to go on writing while a merge stops: never use a file system up to its last block. */
const reserveBytesMax = 64 * 1024 * 1024;
const reserveShare = 0.02;

async function space(path: string): Promise<{ readonly freeBytes: number; readonly reserveBytes: number }> {
  const { bavail, blocks, bsize } = await statfs(dirname(path));
  return {
    freeBytes: bavail * bsize,
    reserveBytes: Math.min(reserveBytesMax, blocks * bsize * reserveShare),
  };
}

function notEnough(file: string, freeBytes: number, neededBytes: number): MergeError {
  return new MergeError(
    'NOT_ENOUGH_DISK_SPACE',
    `the file system of ${file} has ${formatBytes(freeBytes)} free; merging needs ${formatBytes(neededBytes)}`,
    {
      hint: `the machine runs on; free space (df -h ${dirname(file)}), then: stillpoint job retry <id>`,
      retryable: true,
    },
  );
}

/**
 * Before a merge: each file system must take what its volumes' frozen images hold, and the reserve.
 * @throws MergeError NOT_ENOUGH_DISK_SPACE
 */
export async function requireMergeSpace(
  volumes: readonly PlannedVolume[],
  copiedBytes: (volume: PlannedVolume) => number,
): Promise<void> {
  for (const first of volumes) {
    let needed = 0;
    for (const volume of volumes) {
      if (await sameFileSystem(volume.file, first.file))
        needed += Math.max(0, volume.allocatedBytes - copiedBytes(volume));
    }
    const { freeBytes, reserveBytes } = await space(first.file);
    if (freeBytes < needed + reserveBytes) throw notEnough(first.file, freeBytes, needed + reserveBytes);
  }
}

/**
 * While a merge runs: stop it before the guest can pause on a full file system (trap 4).
 * @throws MergeError NOT_ENOUGH_DISK_SPACE
 */
export async function requireReserve(volume: Pick<PlannedVolume, 'file'>): Promise<void> {
  const { freeBytes, reserveBytes } = await space(volume.file);
  if (freeBytes < reserveBytes) throw notEnough(volume.file, freeBytes, reserveBytes);
}
