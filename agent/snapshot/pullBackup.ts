import { chmod, chown, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
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

/** How long a guest that stops again and again is resumed, how often it is looked at, and when it counts as running. */
const resumeMaxMs = 5_000;
const lookMs = 200;
const calmMs = 1_500;

/** Where QEMU serves the volumes of a `disk` backup. */
export function socketPathOf(plan: ReadPlan): string {
  if (plan.socketDirectory === null) throw new Error('the plan has no socket');
  return join(plan.socketDirectory, 'nbd');
}

/** The pull-mode backup of a plan, as libvirt is asked for it. */
export function pullBackupOf(plan: ReadPlan): PullBackup {
  return {
    socketPath: socketPathOf(plan),
    volumes: plan.volumes.map(({ target, scratch, since }) => {
      if (scratch === null) throw new Error(`${target} has no scratch file`);
      return { target, exportName: target, scratchFile: scratch, ...(since === null ? {} : { since }) };
    }),
  };
}

/** What began: the instant, and why volumes that were to be increments are served whole. */
export interface BegunBackup {
  /** Everything that the guest had acknowledged before it is in the backup. */
  readonly at: Date;
  /** By target. */
  readonly unusable: ReadonlyMap<string, string>;
}

/**
 * Makes T1 of a running machine: from here on QEMU serves all its volumes as they are at this instant, and the plan's
 * checkpoint marks it. A volume whose bitmap is missing or broken is served whole.
 * @throws SnapshotError CANNOT_BEGIN_BACKUP; HypervisorError for a machine that has gone off
 */
export async function beginPullBackup(hypervisor: Hypervisor, plan: ReadPlan): Promise<BegunBackup> {
  await makeSocketDirectory(hypervisor, plan);
  // A scratch file that exists is an error to libvirt; these can only be ours, of a run that died.
  for (const { scratch } of plan.volumes) if (scratch !== null) await rm(scratch, { force: true });
  const unusable = new Map<string, string>();
  for (;;) {
    const volumes = plan.volumes.map((volume) =>
      unusable.has(volume.target) ? { ...volume, since: null } : volume,
    );
    const at = new Date();
    try {
      await begin(hypervisor, { ...plan, volumes });
      return { at, unusable };
    } catch (error) {
      if (!(error instanceof HypervisorError)) throw error;
      const broken =
        error.code === 'CHECKPOINT_UNUSABLE' ? brokenTargets(error.message, { ...plan, volumes }) : [];
      if (broken.length === 0) throw cannotBegin(plan, error);
      for (const target of broken) unusable.set(target, error.message);
    }
  }
}

async function begin(hypervisor: Hypervisor, plan: ReadPlan): Promise<void> {
  const targets = plan.volumes.filter(({ keepsBitmaps }) => keepsBitmaps).map(({ target }) => target);
  const checkpoint = plan.checkpoint === null ? undefined : { name: plan.checkpoint, targets };
  await hypervisor.beginBackup(plan.machine.uuid, pullBackupOf(plan), checkpoint);
}

/**
 * Which volumes libvirt means; all that are in question where its words do not tell. A wrong guess reads too much and
 * nothing else: the next attempt to begin is checked in the same way.
 */
function brokenTargets(message: string, { volumes }: ReadPlan): readonly string[] {
  const asked = volumes.filter(({ since }) => since !== null).map(({ target }) => target);
  const named = asked.filter((target) => message.includes(`'${target}'`));
  return named.length > 0 ? named : asked;
}

function cannotBegin(plan: ReadPlan, error: HypervisorError): SnapshotError {
  const { name } = plan.machine;
  const locked = error.code === 'MACHINE_LOCKED' || error.code === 'MACHINE_STATE_INVALID';
  return new SnapshotError(
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

/** What has become of a guest that may stand still for want of room. */
export type Standing = 'runs' | 'runs-again' | 'stands-still';

/**
 * A guest that stands still because the file system of its images, or of a scratch file, was full runs on once the
 * backup has ended, and what the job had put there is gone (trap 4). It may stop again: a write that was under way may
 * fail a little later, and another may need more room than there is.
 * @param wary the file system was full: a guest that still runs is watched, too
 */
export async function resumeAfterFull(
  hypervisor: Pick<Hypervisor, 'machines' | 'resume'>,
  uuid: string,
  wary: boolean,
  patience = { resumeMaxMs, lookMs, calmMs },
): Promise<Standing> {
  const stopped = async (): Promise<boolean> => {
    const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === uuid);
    return machine?.status.state === 'paused' && machine.status.reason === 'io-error';
  };
  let resumed = false;
  const endMs = performance.now() + patience.resumeMaxMs;
  for (let calmSinceMs = performance.now(); performance.now() < endMs; await sleep(patience.lookMs)) {
    if (await stopped()) {
      await hypervisor.resume(uuid);
      resumed = true;
      calmSinceMs = performance.now();
    } else if ((!wary && !resumed) || performance.now() - calmSinceMs >= patience.calmMs) {
      return resumed ? 'runs-again' : 'runs';
    }
  }
  return 'stands-still';
}

/** @returns why a job waits for room with its guest */
export function standsStill(name: string): SnapshotError {
  return new SnapshotError(
    'GUEST_WITHOUT_ROOM',
    `${name} stands still: what it writes cannot be written (I/O error), mostly for want of room beside its images`,
    {
      hint: `virsh domblkerror ${name} tells why; df -h, and free space there; the service lets it run on by itself, or: virsh resume ${name}`,
      retryable: true,
    },
  );
}
