import { exists } from '../../common/files.ts';
import { readImageMap } from '../../common/qemuImage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { BlockJob, Hypervisor, MachineStatus } from '../hypervisor/hypervisor.ts';
import { isMigratedAway } from '../hypervisor/migration.ts';
import { currentBootId } from '../jobs/owner.ts';
import { MergeError } from '../merge/errors.ts';
import { ownQemu } from '../snapshot/imageUsers.ts';
import { type LiveChain, liveChainOf } from '../snapshot/live.ts';
import type { LiveVolume } from '../snapshot/livePlan.ts';
import { currentStateFile, inspectStateFile, type StateFileCondition } from '../snapshot/stateFile.ts';
import { inodeOf } from '../snapshot/workFiles.ts';
import { isDownByAccident } from './decide.ts';
import { machineLeft } from './leftHost.ts';
import { type LiveFacts, livePlanOf } from './liveFacts.ts';
import { findMachine, isTransition, ownersStatus } from './world.ts';

/** What is really there of one volume. */
export interface LiveVolumeWorld {
  readonly target: string;
  readonly imageThere: boolean;
  /** `foreign`: a file of somebody else stands in its place. `empty`: nothing was written to it. */
  readonly overlay: 'absent' | 'foreign' | 'empty' | 'written';
  /** How QEMU has it open, as libvirt knows; of an active machine only. */
  readonly live: LiveChain | undefined;
  /** What the next start will use. */
  readonly persistent: LiveChain;
  readonly job: BlockJob | null;
  /**
   * Process of the machine's own QEMU that has the overlay or the image open for writing, whatever libvirt knows: a
   * libvirtd that died in a pivot has forgotten it (docs/BEHAVIOUR.md).
   */
  readonly qemu: number | undefined;
  readonly qemuOnOverlay: boolean;
  /** QEMU opens what it switches away from read-only, in the transaction that switches. */
  readonly qemuOnImage: boolean;
}

/** What recovery of a `live` backup finds, whatever the journal says. */
export interface LiveWorld {
  readonly machine: 'active' | 'off' | 'gone';
  readonly status: MachineStatus;
  /** libvirt itself is at work on the machine: wait for it. */
  readonly busy: boolean;
  readonly state: StateFileCondition;
  readonly volumes: readonly LiveVolumeWorld[];
}

/**
 * Looks at the machine and the files of a job. Changes nothing.
 * @throws HypervisorError when libvirt cannot be asked
 */
export async function observeLive(hypervisor: Hypervisor, facts: LiveFacts): Promise<LiveWorld> {
  const plan = livePlanOf(facts);
  const { uuid } = plan.machine;
  const found = await findMachine(hypervisor, uuid);
  const status: MachineStatus =
    found === undefined ? { state: 'no-state', reason: 'undefined' } : ownersStatus(found);
  const active = found !== undefined && status.state !== 'shut-off' && status.state !== 'crashed';
  const busy = active && ((await hypervisor.job(uuid)).kind !== 'none' || isTransition(status));
  const live = active ? DomainXml.parse(await hypervisor.definition(uuid, 'live')) : undefined;
  const persistent =
    found === undefined ? undefined : DomainXml.parse(await hypervisor.definition(uuid, 'persistent'));
  const volumes: LiveVolumeWorld[] = [];
  for (const volume of plan.volumes) {
    const chain = live === undefined ? undefined : liveChainOf(live, volume);
    volumes.push({
      target: volume.target,
      imageThere: await exists(volume.file),
      overlay: await overlayOf(volume, facts),
      live: chain,
      persistent: persistentOf(persistent, volume),
      job: live === undefined ? null : await hypervisor.blockJob(uuid, volume.target),
      ...(await qemuOn(volume, uuid, chain)),
    });
  }
  return {
    machine: found === undefined ? 'gone' : active ? 'active' : 'off',
    status,
    busy,
    state: await inspectStateFile(await currentStateFile(plan)),
    volumes,
  };
}

/**
 * Whether the machine has a QEMU.
 * @throws SnapshotError MACHINE_LEFT; MergeError MACHINE_STOPPED when it went down by accident: recovery starts it again
 */
export async function requireNoAccident(hypervisor: Hypervisor, facts: LiveFacts): Promise<boolean> {
  const machine = await findMachine(hypervisor, facts.machine.uuid);
  if (machine === undefined)
    throw new HypervisorError('MACHINE_NOT_FOUND', `${facts.machine.name} is not known to libvirt any more`);
  const status = ownersStatus(machine);
  if (isMigratedAway(status)) throw machineLeft(machine.name, 'migrated');
  if (isDownByAccident(facts, status, facts.bootId !== currentBootId())) {
    throw new MergeError(
      'MACHINE_STOPPED',
      `${machine.name} went down (${status.reason}) during its backup`,
      { retryable: true },
    );
  }
  return status.state !== 'shut-off' && status.state !== 'crashed';
}

/** Looked for where libvirt may not know: a machine that it calls off, or back on its image. */
async function qemuOn(
  volume: LiveVolume,
  uuid: string,
  live: LiveChain | undefined,
): Promise<Pick<LiveVolumeWorld, 'qemu' | 'qemuOnOverlay' | 'qemuOnImage'>> {
  if (live !== undefined && live !== 'image')
    return { qemu: undefined, qemuOnOverlay: false, qemuOnImage: false };
  const onOverlay = (await exists(volume.overlay)) ? await ownQemu(volume.overlay, uuid) : undefined;
  const onImage = (await exists(volume.file)) ? await ownQemu(volume.file, uuid) : undefined;
  return {
    qemu: (onOverlay ?? onImage)?.pid,
    qemuOnOverlay: onOverlay !== undefined,
    qemuOnImage: onImage !== undefined,
  };
}

function persistentOf(persistent: DomainXml | undefined, volume: LiveVolume): LiveChain {
  const path = persistent?.volumes.find(({ target }) => target === volume.target)?.path;
  if (path === volume.image) return 'image';
  return path === volume.overlay ? 'overlay' : 'unknown';
}

async function overlayOf(volume: LiveVolume, facts: LiveFacts): Promise<LiveVolumeWorld['overlay']> {
  if (!(await exists(volume.overlay))) return 'absent';
  const inode = facts.overlayInodes?.[volume.target];
  if (inode !== undefined && (await inodeOf(volume.overlay)) !== inode) return 'foreign';
  // Before the snapshot it may be half made.
  if (facts.snapshotBegun !== true) return 'empty';
  // Read without QEMU's locks: a QEMU that libvirt has forgotten still holds them.
  const extents = await readImageMap(volume.overlay, 'qcow2', { inUse: true });
  return extents.some(({ depth, present }) => depth === 0 && present) ? 'written' : 'empty';
}
