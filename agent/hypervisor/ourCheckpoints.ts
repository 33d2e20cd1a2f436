import { messageOf } from '../../common/errors.ts';
import { HypervisorError } from './errors.ts';
import type { Hypervisor } from './hypervisor.ts';

const prefix = 'stillpoint-';

/** The checkpoint of a backup. No two backups share a name, so a checkpoint is never taken for another. */
export function checkpointNameOf(backupId: string): string {
  return `${prefix}${backupId}`;
}

/** Whether a checkpoint, or the bitmap of one, is of our making. */
export function isOurCheckpoint(name: string): boolean {
  return name.startsWith(prefix);
}

/** Names of the checkpoints that are not ours to lose. */
export async function foreignCheckpointNames(
  hypervisor: Hypervisor,
  uuid: string,
): Promise<readonly string[]> {
  return (await hypervisor.checkpointNames(uuid)).filter((name) => !isOurCheckpoint(name));
}

/**
 * Deletes a checkpoint of ours; where libvirt cannot delete a bitmap of it, because it is gone or the machine is off,
 * only what libvirt knows of it. Does nothing for a checkpoint, or a machine, that is not there.
 * @returns why bitmaps may be left in the images; `null`: none are
 * @throws HypervisorError when libvirt does not answer or is busy
 */
export async function dropCheckpoint(
  hypervisor: Hypervisor,
  uuid: string,
  name: string,
): Promise<string | null> {
  if (!isOurCheckpoint(name)) throw new Error(`${name} is not a checkpoint of ours`);
  try {
    await hypervisor.deleteCheckpoint(uuid, name, 'all');
    return null;
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error;
    if (error.code === 'MACHINE_NOT_FOUND') return null;
    const unable: readonly string[] = [
      'OPERATION_FAILED',
      'OPERATION_UNSUPPORTED',
      'MACHINE_STATE_INVALID',
      'CHECKPOINT_UNUSABLE',
    ];
    if (!unable.includes(error.code)) throw error;
    await hypervisor.deleteCheckpoint(uuid, name, 'metadata');
    return messageOf(error);
  }
}
