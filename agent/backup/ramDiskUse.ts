import { spaceFactor } from '../snapshot/space.ts';
import type { BackupFacts } from './facts.ts';

/** What of a job's facts tells it. */
export interface RamDiskUse {
  readonly plan?: Pick<NonNullable<BackupFacts['plan']>, 'stateOnRamDisk' | 'memoryBytes'> | undefined;
  readonly pointInTime?: string | undefined;
}

/**
 * What backups that have not saved their machines yet are going to write to the RAM disk, in bytes: its free
 * space does not show it yet.
 */
export function plannedRamDiskBytes(jobs: readonly RamDiskUse[]): number {
  let bytes = 0;
  for (const { plan, pointInTime } of jobs) {
    if (plan?.stateOnRamDisk && pointInTime === undefined) bytes += plan.memoryBytes * spaceFactor;
  }
  return bytes;
}
