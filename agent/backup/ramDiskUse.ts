import { spaceFactor } from '../snapshot/space.ts';
import * as z from 'zod';

/** What of a job's facts tells it, in modes `save` and `live`. */
export const ramDiskUseSchema = z.object({
  plan: z.object({ stateOnRamDisk: z.boolean(), memoryBytes: z.number() }).optional(),
  pointInTime: z.string().optional(),
});

export type RamDiskUse = z.infer<typeof ramDiskUseSchema>;

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
