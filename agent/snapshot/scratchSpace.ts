import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freeBytes, nearestExisting, sameFileSystem } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { SnapshotError } from './errors.ts';
import type { ReadPlan } from './readPlan.ts';

/** What of a plan tells whose writes need room beside which images. */
export interface OverwritePlan {
  readonly machine: { readonly name: string };
  readonly volumes: readonly { readonly file: string; readonly allocatedBytes: number }[];
  /** What the job itself puts beside the first volume. */
  readonly extrasBytes: number;
}

/** How often the free space is looked at: what a guest writes in between must fit into the reserve. */
const watchMs = 200;
const reserveShare = 0.05;
const reserveBytesMin = 16 * 1024 * 1024;
const reserveBytesMax = 1024 ** 3;

/** What is left free for the guest beside the scratch files: when it would be touched, the backup is given up. */
export async function reserveBytes(path: string): Promise<number> {
  const { blocks, bsize } = await statfs(await nearestExisting(dirname(path)));
  return Math.min(reserveBytesMax, Math.max(reserveBytesMin, blocks * bsize * reserveShare));
}

/**
 * A scratch file takes at most what the volume holds; mostly it takes little.
 * @returns warnings where the guest could overwrite more than there is room for
 * @throws SnapshotError NOT_ENOUGH_DISK_SPACE where there is nothing beyond the reserve
 */
export async function requireScratchSpace(plan: OverwritePlan): Promise<readonly string[]> {
  const warnings: string[] = [];
  for (const first of plan.volumes) {
    let mostBytes = 0;
    for (const volume of plan.volumes)
      if (await sameFileSystem(volume.file, first.file)) mostBytes += volume.allocatedBytes;
    const [beside] = plan.volumes;
    const takesExtras = beside !== undefined && (await sameFileSystem(beside.file, first.file));
    const freeNow = await freeBytes(first.file);
    const free = Math.max(0, freeNow - (takesExtras ? plan.extrasBytes : 0));
    const reserve = await reserveBytes(first.file);
    if (free < 2 * reserve) {
      throw new SnapshotError(
        'NOT_ENOUGH_DISK_SPACE',
        `the file system of ${first.file} has ${formatBytes(freeNow)} free; what ${plan.machine.name} overwrites while it is read needs room there`,
        { hint: `free at least ${formatBytes(2 * reserve - free)}: df -h ${first.file}`, retryable: true },
      );
    }
    if (free - reserve < mostBytes)
      warnings.push(
        `the file system of ${first.file} has ${formatBytes(freeNow)} free: if the guest overwrites more than ${formatBytes(free - reserve)} before it is read, the backup is given up`,
      );
  }
  return [...new Set(warnings)];
}

/**
 * Watches the file systems of the scratch files until `signal` is aborted. A full one would make the guest stand
 * still (trap 4).
 * @throws SnapshotError SCRATCH_FULL before that happens
 */
export async function watchScratch(plan: ReadPlan, signal: AbortSignal): Promise<void> {
  const scratches = plan.volumes.flatMap(({ scratch }) => scratch ?? []);
  const reserves = new Map<string, number>();
  for (const scratch of scratches) reserves.set(scratch, await reserveBytes(scratch));
  while (!signal.aborted) {
    for (const [scratch, reserve] of reserves) {
      const free = await freeBytes(scratch);
      if (free >= reserve) continue;
      throw new SnapshotError(
        'SCRATCH_FULL',
        `the file system of ${scratch} has only ${formatBytes(free)} left: ${plan.machine.name} overwrites faster than it is read`,
        {
          hint: 'the machine was not touched; make room there, choose a quieter hour, or a faster storage',
          retryable: true,
        },
      );
    }
    await sleep(watchMs, undefined, { signal }).catch(() => undefined);
  }
}
