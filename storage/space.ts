import { statfs } from 'node:fs/promises';
import { inStorage } from './errors.ts';
import { formatBytes } from '../common/units.ts';

/** How much room a storage has. */
export interface StorageSpace {
  /** Of its file system; `null` where that has no bounds. */
  readonly capacityBytes: number | null;
  readonly freeBytes: number | null;
  /** What the storage itself takes; `null` where nobody asked for it and no quota needs it. */
  readonly storedBytes: number | null;
  /** `null`: none is configured. */
  readonly quotaBytes: number | null;
}

/** Bounds that the configuration sets to a storage. */
export interface StorageBounds {
  readonly quotaBytes: number | null;
  /** From here on its fullness is told. */
  readonly warnPercent: number;
}

export const noBounds: StorageBounds = { quotaBytes: null, warnPercent: 85 };

/** Room of the file system that a directory is on. @throws StorageError */
export function fileSystemSpace(
  path: string,
): Promise<{ readonly capacityBytes: number; readonly freeBytes: number }> {
  return inStorage(path, `looking for room in ${path}`, async () => {
    const { bavail, bfree, blocks, bsize } = await statfs(path);
    // What is kept for root is neither free nor taken: full is when nothing is left for us, as df says.
    return { capacityBytes: (blocks - bfree + bavail) * bsize, freeBytes: bavail * bsize };
  });
}

/** What there is to say about a storage that is nearly full, or full; `null`: there is room. */
export function fullnessWarning(
  name: string,
  { capacityBytes, freeBytes, storedBytes, quotaBytes }: StorageSpace,
  warnPercent: number,
): string | null {
  if (quotaBytes !== null && storedBytes !== null && storedBytes * 100 >= quotaBytes * warnPercent)
    return `storage ${name} holds ${percent(storedBytes, quotaBytes)} of its quota: ${formatBytes(storedBytes)} of ${formatBytes(quotaBytes)}`;
  if (capacityBytes === null || freeBytes === null || capacityBytes === 0) return null;
  const takenBytes = capacityBytes - freeBytes;
  if (takenBytes * 100 < capacityBytes * warnPercent) return null;
  return `the file system of storage ${name} is ${percent(takenBytes, capacityBytes)} full: ${formatBytes(freeBytes)} free`;
}

function percent(part: number, whole: number): string {
  return `${Math.floor((part / whole) * 100)} %`;
}
