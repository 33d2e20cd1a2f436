import { chmod, chown, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../common/errors.ts';
import { exists } from '../../common/files.ts';
import type { PullBackup } from '../hypervisor/backupXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import type { ReadPlan } from './readPlan.ts';
import { makeRunDirectory } from './runDirectory.ts';

/** The longest path that a unix socket can have on Linux, without its final zero. */
export const socketPathBytesMax = 107;

/** Where QEMU serves the volumes of a `disk` backup. */
export function socketPathOf(plan: ReadPlan): string {
  if (plan.socketDirectory === null) throw new Error('the plan has no socket');
  return join(plan.socketDirectory, 'nbd');
}

/** The pull-mode backup of a plan, as libvirt is asked for it. */
export function pullBackupOf(plan: ReadPlan): PullBackup {
  return {
    socketPath: socketPathOf(plan),
    volumes: plan.volumes.map(({ target, scratch }) => {
      if (scratch === null) throw new Error(`${target} has no scratch file`);
      return { target, exportName: target, scratchFile: scratch };
    }),
  };
}

/**
 * Makes T1 of a running machine: from here on QEMU serves all its volumes as they are at this instant.
 * @returns the instant before which everything that the guest had acknowledged is in the backup
 * @throws SnapshotError CANNOT_BEGIN_BACKUP; HypervisorError for a machine that has gone off
 */
export async function beginPullBackup(hypervisor: Hypervisor, plan: ReadPlan): Promise<Date> {
  const { uuid, name } = plan.machine;
  await makeSocketDirectory(hypervisor, plan);
  // A scratch file that exists is an error to libvirt; these can only be ours, of a run that died.
  for (const { scratch } of plan.volumes) if (scratch !== null) await rm(scratch, { force: true });
  const pointInTime = new Date();
  try {
    await hypervisor.beginBackup(uuid, pullBackupOf(plan));
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error;
    const locked = error.code === 'MACHINE_LOCKED' || error.code === 'MACHINE_STATE_INVALID';
    throw new SnapshotError(
      'CANNOT_BEGIN_BACKUP',
      `QEMU cannot serve the volumes of ${name}: ${messageOf(error)}`,
      {
        cause: error,
        hint: locked
          ? `something else works on the machine: virsh domjobinfo ${name}; virsh backup-dumpxml ${name}`
          : `AppArmor or SELinux may keep QEMU from ${plan.socketDirectory}: dmesg | grep -i denied; the machine's log is in /var/log/libvirt/qemu; mode "save" needs no socket`,
        retryable: locked,
      },
    );
  }
  return pointInTime;
}

/** QEMU makes the socket itself, as the user that it runs as; nobody else may get in. */
async function makeSocketDirectory(hypervisor: Hypervisor, plan: ReadPlan): Promise<void> {
  const directory = plan.socketDirectory;
  if (directory === null) throw new Error('the plan has no socket');
  const { uid, gid } = await hypervisor.processUser(plan.machine.uuid);
  await makeRunDirectory(directory);
  await chown(directory, uid, gid);
  await chmod(directory, 0o700);
}

/**
 * Ends the backup if it is ours and takes away what it used; may be repeated. The machine may be off or gone.
 * @throws HypervisorError when libvirt fails
 */
export async function endPullBackup(hypervisor: Hypervisor, plan: ReadPlan): Promise<void> {
  if (plan.socketDirectory === null) return;
  const { uuid } = plan.machine;
  try {
    await hypervisor.endBackup(uuid, socketPathOf(plan));
  } catch (error) {
    const gone =
      error instanceof HypervisorError &&
      (error.code === 'MACHINE_NOT_FOUND' || error.code === 'MACHINE_STATE_INVALID');
    if (!gone) throw error;
  }
  for (const { scratch } of plan.volumes) if (scratch !== null) await rm(scratch, { force: true });
  if (await exists(plan.socketDirectory)) await rm(plan.socketDirectory, { recursive: true, force: true });
}

/** A guest that stands still because a scratch file found no room runs on once the backup has ended (trap 4). */
export async function resumeAfterFullScratch(
  hypervisor: Hypervisor,
  uuid: string,
  wasRunning: boolean,
): Promise<boolean> {
  if (!wasRunning) return false;
  const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === uuid);
  if (machine?.status.state !== 'paused' || machine.status.reason !== 'io-error') return false;
  await hypervisor.resume(uuid);
  return true;
}
