import { messageOf, StillpointError } from '../../common/errors.ts';
import type { Storage } from '../../storage/storage.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { dropCheckpoint, isOurCheckpoint } from '../hypervisor/ourCheckpoints.ts';
import { patiently } from '../hypervisor/patience.ts';
import { lineageHead } from '../retain/lineage.ts';

/**
 * Deletes the checkpoints of ours that no lineage starts from any more. When a storage does not answer, all are kept:
 * one of them may be its. What libvirt does not delete now is left to the next backup; that never fails this one.
 * @param storages all that are configured
 */
export async function dropUnneeded(
  hypervisor: Hypervisor,
  uuid: string,
  storages: readonly Storage[],
  warn: (message: string) => void,
): Promise<void> {
  try {
    const checkpoints = await hypervisor.checkpoints(uuid);
    const needed = new Set<string>();
    for (const storage of storages) {
      const head = lineageHead(await storage.list({ machine: uuid }), checkpoints);
      if (head !== null) needed.add(head.checkpoint.name);
    }
    for (const { name } of checkpoints)
      if (isOurCheckpoint(name) && !needed.has(name)) await dropOne(hypervisor, uuid, name);
  } catch (error) {
    if (!(error instanceof StillpointError)) throw error;
    warn(`checkpoints of earlier backups are kept for now: ${messageOf(error)}`);
  }
}

/**
 * Deletes the checkpoint of a backup that comes to nothing, also while libvirt is busy. What cannot be deleted now is
 * never started from, and left to the next backup.
 */
export async function dropFailed(
  hypervisor: Hypervisor,
  context: { warn(message: string): void },
  machine: { readonly uuid: string; readonly name: string },
  checkpoint: string,
): Promise<void> {
  try {
    await patiently('deleting the checkpoint', context, async () => {
      const left = await dropCheckpoint(hypervisor, machine.uuid, checkpoint);
      if (left !== null)
        context.warn(`bitmaps ${checkpoint} may be left in the images of ${machine.name}: ${left}`);
    });
  } catch (error) {
    if (!(error instanceof StillpointError)) throw error;
    context.warn(`checkpoint ${checkpoint} is left for now: ${messageOf(error)}`);
  }
}

/** A machine that has gone off meanwhile keeps its bitmaps: then libvirt must go on knowing them, too. */
async function dropOne(hypervisor: Hypervisor, uuid: string, name: string): Promise<void> {
  const { state } = await hypervisor.status(uuid);
  if (state === 'shut-off' || state === 'crashed')
    throw new HypervisorError('MACHINE_STATE_INVALID', 'the machine is off');
  await dropCheckpoint(hypervisor, uuid, name);
}
