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
      if (isOurCheckpoint(name) && !needed.has(name)) {
        const left = await dropOne(hypervisor, uuid, name);
        if (left !== null) warn(`bitmaps ${name} may be left in the images: ${left}`);
      }
  } catch (error) {
    if (!(error instanceof StillpointError)) throw error;
    warn(`checkpoints of earlier backups are kept for now: ${messageOf(error)}`);
  }
}

/** Answers of libvirt to a checkpoint after which a backup goes on without one. */
const refusals: readonly string[] = ['OPERATION_FAILED', 'OPERATION_UNSUPPORTED', 'CHECKPOINT_UNUSABLE'];

/**
 * Makes the checkpoint of a plan on a machine that runs, before its T1: what the guest changes from here to T1 is read
 * once more by the next increment; a checkpoint that is made afterwards would miss what is written in between.
 * @returns why libvirt refuses it; `null`: it is made
 * @throws HypervisorError when libvirt does not answer, or the machine is not what it was
 */
export async function markBefore(
  hypervisor: Hypervisor,
  { machine, volumes }: MarkedPlan,
  name: string,
): Promise<string | null> {
  const targets = volumes.filter(({ keepsBitmaps }) => keepsBitmaps).map(({ target }) => target);
  try {
    await hypervisor.createCheckpoint(machine.uuid, { name, targets });
    return null;
  } catch (error) {
    if (!(error instanceof HypervisorError) || !refusals.includes(error.code)) throw error;
    return `no checkpoint could be made, the next backup reads more: ${error.message}`;
  }
}

/** What a plan must say to have a checkpoint. */
export interface MarkedPlan {
  readonly machine: { readonly uuid: string };
  readonly volumes: readonly { readonly target: string; readonly keepsBitmaps: boolean }[];
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
async function dropOne(hypervisor: Hypervisor, uuid: string, name: string): Promise<string | null> {
  const { state } = await hypervisor.status(uuid);
  if (state === 'shut-off' || state === 'crashed')
    throw new HypervisorError('MACHINE_STATE_INVALID', 'the machine is off');
  return dropCheckpoint(hypervisor, uuid, name);
}
