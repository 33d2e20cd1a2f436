import { readFile, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { freeBytes, sameFileSystem } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { SnapshotError } from './errors.ts';
import type { PlannedVolume } from './plan.ts';
import { requireOwnDirectory } from './retainDirectory.ts';

/** Head-room on everything that must fit somewhere (SC-02, SC-12). */
export const spaceFactor = 1.05;

/** Share of the host's memory that a RAM disk never takes. */
const memoryReserveShare = 0.05;

/** A volume that needs room on its file system while the job runs: `allocatedBytes` of it. */
export type SpaceUser = Pick<PlannedVolume, 'target' | 'file' | 'workDirectory' | 'allocatedBytes'>;

/** Where the memory state of a machine goes. */
export interface StatePlace {
  /** What libvirt writes while the machine stands still. */
  readonly file: string;
  readonly onRamDisk: boolean;
  /** Where it goes as soon as the machine runs again; `null`: it stays until it is in the storages. */
  readonly stowedFile: string | null;
  readonly warnings: readonly string[];
}

/**
 * The memory state goes to the RAM disk when memory × 1.05 fits, else beside the images (SC-02). A RAM disk holds
 * it for the pause only, where there is room for it beside the images.
 * @throws SnapshotError NOT_ENOUGH_DISK_SPACE for what the merge copies at most, and the state if it must go there
 */
export async function placeState(
  machine: { readonly name: string; readonly memoryBytes: number },
  volumes: readonly SpaceUser[],
  request: {
    readonly jobId: string;
    readonly ramDisk: string | null;
    /** What other jobs are still going to write to the RAM disk. */
    readonly ramDiskReservedBytes: number;
  },
  /** What else is put beside the first volume. */
  extrasBytes: number,
): Promise<StatePlace> {
  const { memoryBytes } = machine;
  const fileName = `${volumes[0]?.target ?? 'machine'}.state`;
  const beside = join(volumes[0]?.workDirectory ?? '', fileName);
  const ramDisk = await examineRamDisk(memoryBytes, request);
  if (ramDisk === null || ramDisk.freeBytes < ramDisk.neededBytes) {
    await requireSpace(volumes, memoryBytes + extrasBytes);
    const warnings =
      ramDisk === null
        ? []
        : [
            `the RAM disk ${ramDisk.path} has ${formatBytes(Math.max(0, ramDisk.freeBytes))} free, ${machine.name} needs up to ${formatBytes(ramDisk.neededBytes)}: its memory is saved beside its images, and the pause is longer`,
          ];
    return { file: beside, onRamDisk: false, stowedFile: null, warnings };
  }
  await requireSpace(volumes, extrasBytes);
  const place = { file: join(ramDisk.path, request.jobId, fileName), onRamDisk: true };
  const shortage = await findShortage(volumes, memoryBytes + extrasBytes);
  if (shortage === undefined) return { ...place, stowedFile: beside, warnings: [] };
  return {
    ...place,
    stowedFile: null,
    warnings: [
      `the file system of ${shortage.file} has no room for the memory of ${machine.name} as well: it stays on the RAM disk, up to ${formatBytes(memoryBytes)}, until it is stored`,
    ],
  };
}

async function examineRamDisk(
  memoryBytes: number,
  request: { readonly ramDisk: string | null; readonly ramDiskReservedBytes: number },
): Promise<{ readonly path: string; readonly freeBytes: number; readonly neededBytes: number } | null> {
  const path = request.ramDisk;
  if (path === null) return null;
  await requireOwnDirectory(path);
  const free = Math.min(await freeBytes(path), await spareMemoryBytes(path));
  return { path, freeBytes: free - request.ramDiskReservedBytes, neededBytes: memoryBytes * spaceFactor };
}

/**
 * What a RAM disk is made of: memory that the host can spare. The state grows while QEMU still holds the guest's
 * memory, and a host without memory kills machines.
 */
async function spareMemoryBytes(directory: string): Promise<number> {
  const tmpfs = 0x01021994;
  if ((await statfs(directory)).type !== tmpfs) return Number.POSITIVE_INFINITY;
  const meminfo = await readFile('/proc/meminfo', 'utf8');
  const kib = (key: string): number =>
    Number(new RegExp(`^${key}:\\s+(\\d+) kB`, 'm').exec(meminfo)?.[1] ?? 0);
  return Math.max(0, kib('MemAvailable') - kib('MemTotal') * memoryReserveShare) * 1024;
}

/** @throws SnapshotError NOT_ENOUGH_DISK_SPACE */
async function requireSpace(volumes: readonly SpaceUser[], besideFirstBytes: number): Promise<void> {
  const shortage = await findShortage(volumes, besideFirstBytes);
  if (shortage === undefined) return;
  const { file, neededBytes, availableBytes } = shortage;
  throw new SnapshotError(
    'NOT_ENOUGH_DISK_SPACE',
    `the file system of ${file} has ${formatBytes(availableBytes)} free; the backup needs up to ${formatBytes(neededBytes)} there while it runs`,
    {
      hint: `free at least ${formatBytes(neededBytes - availableBytes)}: df -h ${join(file, '..')}`,
      retryable: true,
    },
  );
}

/** The first file system of images without room for what the merge copies at most, and for state and extras. */
async function findShortage(
  volumes: readonly SpaceUser[],
  besideFirstBytes: number,
): Promise<
  { readonly file: string; readonly neededBytes: number; readonly availableBytes: number } | undefined
> {
  let remaining = volumes;
  let bytesBeside = besideFirstBytes;
  for (let first = remaining[0]; first !== undefined; first = remaining[0]) {
    const elsewhere: SpaceUser[] = [];
    let neededBytes = bytesBeside;
    for (const volume of remaining) {
      if (await sameFileSystem(volume.file, first.file)) neededBytes += volume.allocatedBytes;
      else elsewhere.push(volume);
    }
    neededBytes *= spaceFactor;
    remaining = elsewhere;
    bytesBeside = 0;
    const availableBytes = await freeBytes(first.file);
    if (availableBytes < neededBytes) return { file: first.file, neededBytes, availableBytes };
  }
  return undefined;
}
