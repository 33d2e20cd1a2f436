import { exists } from '../../common/files.ts';
import { readImageMap } from '../../common/qemuImage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor, MachineStatus, MachineSummary } from '../hypervisor/hypervisor.ts';
import { type HeaderState, headerState } from '../merge/completeness.ts';
import { type ChainState, chainState } from '../snapshot/chain.ts';
import { foreignWriters } from '../snapshot/imageUsers.ts';
import type { PlannedVolume } from '../snapshot/plan.ts';
import type { BackupFacts } from './facts.ts';
import { standsOnItsHeaders } from './lettingGo.ts';
import { planOf } from './saveSteps.ts';
import {
  currentStateFile,
  inspectStateFile,
  type StateFileCondition,
  stateFileTime,
} from '../snapshot/stateFile.ts';
import { inodeOf, isSameFile, modificationTime } from '../snapshot/workFiles.ts';

/** What is really there of one volume. */
export interface VolumeWorld {
  readonly target: string;
  /**
   * `original`: the image is the one that the machine had before (the frozen image is its second name, or not
   * there yet). `swapped`: our overlay is in its place, and the frozen image is there. `foreign`: something
   * else is in its place. `undone`: it is not our overlay, and the frozen image is gone as after an undo.
   */
  readonly image: 'original' | 'swapped' | 'foreign' | 'undone' | 'without-frozen' | 'missing';
  readonly header: HeaderState | undefined;
  /** Of an active machine only. */
  readonly chain: ChainState | undefined;
  /** It runs on exactly the chain that its headers name; looked for where that is not the one of the plan. */
  readonly ownChain?: boolean | undefined;
  /** The next start uses the image; looked at while the machine is off, for its owner may have given it another. */
  readonly named?: boolean | undefined;
  /** The guest wrote since the state was saved: the state must not be restored onto it. */
  readonly written: boolean;
  /** Another process that has the image open for writing; looked for while the machine stands still. */
  readonly lockedBy: string | undefined;
}

/** What recovery finds, whatever the journal says. */
export interface World {
  readonly machine: 'active' | 'off' | 'gone';
  readonly status: MachineStatus;
  /** libvirt's number of the present run. */
  readonly runId: string | undefined;
  /** libvirt itself is at work on the machine (saving, starting up): wait for it. */
  readonly busy: boolean;
  readonly state: StateFileCondition;
  readonly volumes: readonly VolumeWorld[];
}

const gone: MachineStatus = { state: 'no-state', reason: 'undefined' };

/** How often a machine that changes while it is looked at is looked at again. */
const looksMax = 20;

/**
 * Looks at the machine and the files of a backup job. Changes nothing. What it tells is of one moment: a machine
 * that stops or starts in between is looked at again.
 * @throws HypervisorError when libvirt cannot be asked
 */
export async function observe(hypervisor: Hypervisor, facts: BackupFacts): Promise<World> {
  for (let looks = 1; ; looks += 1) {
    const world = await look(hypervisor, facts);
    const machine = await findMachine(hypervisor, planOf(facts).machine.uuid);
    const after = machine === undefined ? gone : ownersStatus(machine);
    const isSame = after.state === world.status.state && after.reason === world.status.reason;
    // Only an active machine has a run; without one the definition was that of its next start.
    if ((isSame && (world.machine === 'active') === (world.runId !== undefined)) || looks >= looksMax)
      return world;
  }
}

async function look(hypervisor: Hypervisor, facts: BackupFacts): Promise<World> {
  const plan = planOf(facts);
  const machine = await findMachine(hypervisor, plan.machine.uuid);
  const status = machine === undefined ? gone : ownersStatus(machine);
  const active = machine !== undefined && status.state !== 'shut-off' && status.state !== 'crashed';
  const busy = active && ((await hypervisor.job(plan.machine.uuid)).kind !== 'none' || isTransition(status));
  const stateFile = await currentStateFile(plan);
  const state = await inspectStateFile(stateFile);
  const live = active ? DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'live')) : undefined;
  const next =
    machine?.persistent === true && !active
      ? DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'persistent'))
      : undefined;
  const savedAt = state === 'complete' ? await stateFileTime(stateFile) : undefined;
  const standsStill = !active || status.state === 'paused';
  const volumes: VolumeWorld[] = [];
  for (const volume of plan.volumes) {
    const files = await observeVolume(volume, { live, savedAt, facts });
    const lockedBy = standsStill ? await otherWriter(volume, plan.machine.uuid) : undefined;
    const named = next === undefined ? undefined : namesImage(next, volume);
    volumes.push({ ...files, named, lockedBy });
  }
  return {
    machine: machine === undefined ? 'gone' : active ? 'active' : 'off',
    status,
    runId: live?.runId,
    busy,
    state,
    volumes,
  };
}

/** A definition has the image of a volume where the plan had it. */
export function namesImage(definition: DomainXml, { target, image }: PlannedVolume): boolean {
  return definition.volumes.find((candidate) => candidate.target === target)?.path === image;
}

/** A machine that its owner has put to sleep with `virsh managedsave` is `saved` as one that we saved is. */
export function ownersStatus(machine: MachineSummary): MachineStatus {
  return machine.hasManagedSave ? { ...machine.status, reason: 'managed-saved' } : machine.status;
}

/** libvirt is in the middle of something with the machine. */
export function isTransition(status: MachineStatus): boolean {
  return (
    (status.state === 'paused' && (status.reason === 'saving' || status.reason === 'starting-up')) ||
    status.state === 'shutting-down'
  );
}

/** The machine, when libvirt knows it. @throws HypervisorError */
export async function findMachine(hypervisor: Hypervisor, uuid: string): Promise<MachineSummary | undefined> {
  try {
    return await hypervisor.machine(uuid);
  } catch (error) {
    if (error instanceof HypervisorError && error.code === 'MACHINE_NOT_FOUND') return undefined;
    throw error;
  }
}

async function otherWriter(volume: PlannedVolume, uuid: string): Promise<string | undefined> {
  for (const file of [volume.file, volume.frozen]) {
    if (!(await exists(file))) continue;
    const writer = (await foreignWriters(file, uuid))[0];
    if (writer !== undefined) return `process ${writer.pid} (${writer.command})`;
  }
  return undefined;
}

async function observeVolume(
  volume: PlannedVolume,
  seen: {
    readonly live: DomainXml | undefined;
    readonly savedAt: number | undefined;
    readonly facts: BackupFacts;
  },
): Promise<Omit<VolumeWorld, 'lockedBy' | 'named'>> {
  const { target } = volume;
  const chain = seen.live === undefined ? undefined : chainState(seen.live, volume);
  if (!(await exists(volume.file)))
    return { target, image: 'missing', header: undefined, chain, written: false };
  const overlay = seen.facts.overlayInodes?.[target];
  const isOverlay = overlay === undefined || (await inodeOf(volume.file)) === overlay;
  if (!(await exists(volume.frozen))) {
    return {
      target,
      image: isOverlay ? 'without-frozen' : 'undone',
      header: undefined,
      chain,
      written: false,
    };
  }
  if (await isSameFile(volume.file, volume.frozen)) {
    // Nothing writes to the images of a saved machine: its state is the younger file, unless somebody ran it.
    const written = seen.savedAt !== undefined && (await modificationTime(volume.file)) > seen.savedAt;
    return { target, image: 'original', header: undefined, chain, written };
  }
  if (!isOverlay) return { target, image: 'foreign', header: undefined, chain, written: true };
  // Read without QEMU's locks: whoever holds one, recovery must see what is there.
  const header = await headerState(volume, {
    inUse: true,
    includeSharedBase: seen.facts.settings.includeSharedBase,
  });
  const extents = seen.live === undefined ? await readImageMap(volume.file, 'qcow2', { inUse: true }) : [];
  const written = extents.some((extent) => extent.depth === 0 && extent.present);
  const ownChain =
    seen.live !== undefined && chain === 'unknown' ? await standsOnItsHeaders(seen.live, target) : undefined;
  return { target, image: 'swapped', header, chain, ownChain, written };
}
