import { stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isErrno } from '../../common/errors.ts';
import { freeBytes, sameFileSystem } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { SnapshotError } from './errors.ts';
import type { LivePlan } from './livePlan.ts';
import { reserveBytes } from './scratchSpace.ts';

/** How often the free space is looked at: what a guest writes in between must fit into the reserve. */
const watchMs = 200;

/**
 * Watches the overlays until `signal` is aborted: on each file system there must stay room for what the merge copies
 * into the images, which is at most what the overlays hold, and for what the guest writes meanwhile.
 * @throws SnapshotError OVERLAY_FULL before that is gone
 */
export async function watchOverlays(plan: LivePlan, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    for (const first of plan.volumes) {
      let overlayBytes = 0;
      for (const { overlay, file } of plan.volumes)
        if (await sameFileSystem(file, first.file)) overlayBytes += await allocatedBytes(overlay);
      const free = await freeBytes(first.file);
      if (free >= overlayBytes + (await reserveBytes(first.file))) continue;
      throw new SnapshotError(
        'OVERLAY_FULL',
        `the file system of ${first.file} has ${formatBytes(free)} left, and ${plan.machine.name} has written ${formatBytes(overlayBytes)} since T1 that must be merged there`,
        {
          hint: 'the machine is merged and runs on; make room there, choose a quieter hour, or a faster storage',
          retryable: true,
        },
      );
    }
    await sleep(watchMs, undefined, { signal }).catch(() => undefined);
  }
}

async function allocatedBytes(file: string): Promise<number> {
  try {
    return (await stat(file)).blocks * 512;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return 0;
    throw error;
  }
}
