import { fsyncFile } from '../../common/files.ts';
import { isTestSwitchOn } from '../../common/testSwitches.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { MergePlan } from '../snapshot/plan.ts';
import { headerState, requireComplete } from './completeness.ts';
import { MergeError } from './errors.ts';

/**
 * Makes a finished pull durable. QEMU reports completion before the image's metadata is on disk (trap 2):
 * stopping and resuming the vCPUs flushes; for a paused machine that does nothing, there the monitor is asked.
 * Then the image is fsynced, and compared with the frozen image before anything may take that away.
 * @throws MergeError MERGE_INCOMPLETE, CANNOT_MERGE_DISK_IMAGES
 */
export async function flushMerged(
  hypervisor: Hypervisor,
  plan: MergePlan,
  includeSharedBase: boolean,
  onHeld: (vcpusHeld: boolean) => void,
): Promise<void> {
  if (isTestSwitchOn('trust-stream-completion')) return;
  await flushVolumes(hypervisor, plan, onHeld);
  await requireMerged(plan, { inUse: true, includeSharedBase });
}

/**
 * Brings what QEMU holds of the images' metadata to the disk; the vCPUs are as before afterwards.
 * @param onHeld called before vCPUs that run are stopped, and after they were resumed: a machine that its owner has
 * suspended is not ours to resume
 */
export async function flushVolumes(
  hypervisor: Hypervisor,
  plan: MergePlan,
  onHeld: (vcpusHeld: boolean) => void,
): Promise<void> {
  const { uuid } = plan.machine;
  const status = await hypervisor.status(uuid);
  if (status.state === 'paused') {
    for (const volume of plan.volumes) await hypervisor.flushVolume(uuid, volume.target);
  } else {
    onHeld(true);
    await hypervisor.suspend(uuid);
    await hypervisor.resume(uuid);
    onHeld(false);
  }
}

/**
 * Fsyncs the images and proves them complete.
 * @throws MergeError MERGE_INCOMPLETE, CANNOT_MERGE_DISK_IMAGES
 */
export async function requireMerged(
  plan: MergePlan,
  options: { readonly inUse: boolean; readonly includeSharedBase: boolean },
): Promise<void> {
  for (const volume of plan.volumes) {
    await fsyncFile(volume.file);
    const header = await headerState(volume, options);
    if (header !== 'merged') {
      throw new MergeError(
        'CANNOT_MERGE_DISK_IMAGES',
        `the header of ${volume.file} is not that of a merged image (${header})`,
        {
          hint: `qemu-img info -U --backing-chain ${volume.file}`,
        },
      );
    }
    await requireComplete(volume, options);
  }
}
