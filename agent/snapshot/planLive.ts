import { join } from 'node:path';
import { readImageInfo } from '../../common/qemuImage.ts';
import { type DomainVolume, DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import { isOurCheckpoint } from '../hypervisor/ourCheckpoints.ts';
import { SnapshotError } from './errors.ts';
import { planExtras } from './extras.ts';
import type { LivePlan, LiveVolume } from './livePlan.ts';
import { allocatedBytesOf, formatOf, ownerOf } from './images.ts';
import {
  chainBelow,
  imageOf,
  isLeftOut,
  refuseForeignVolume,
  refuseOtherUsers,
  refuseUnsuitableImage,
  resolveImage,
} from './planVolume.ts';
import {
  planNvram,
  type PreflightRequest,
  refuseBlockJob,
  refuseBusyMachine,
  refuseSnapshots,
  refuseUnsuitableSet,
  refuseUnsuitableState,
  refuseUnsupportedDevices,
} from './preflight.ts';
import { requireUsableRetainDirectory } from './retainDirectory.ts';
import { requireScratchSpace } from './scratchSpace.ts';
import { placeState } from './space.ts';
import { workDirectoryFor } from './workspace.ts';

export interface LiveRequest extends PreflightRequest {
  /** How many times the machine's memory its state may become while the guest changes it. */
  readonly memoryFactor: number;
  readonly whenNotConverging: 'pause-longer' | 'disk' | 'fail';
}

/**
 * Looks at a machine and everything that a `live` backup of it needs, and plans it. Changes nothing.
 * @throws SnapshotError with what is unsuitable and what to do about it
 */
export async function planLive(hypervisor: Hypervisor, request: LiveRequest): Promise<LivePlan> {
  const machine = await hypervisor.machine(request.machineUuid);
  const { uuid, name } = machine;
  refuseUnsuitableState(machine, 'live');
  refuseSuspended(machine);
  const definition = DomainXml.parse(await hypervisor.definition(uuid, 'live'));
  refuseUnsupportedDevices(definition);
  await refuseSnapshots(hypervisor, uuid, name);
  await refuseBusyMachine(hypervisor, uuid, name);
  const warnings: string[] = [];
  const volumes: LiveVolume[] = [];
  for (const volume of definition.volumes) {
    if (isLeftOut(volume)) {
      const kind = `${volume.readOnly ? 'read-only ' : ''}${volume.device}`;
      warnings.push(`${volume.target} (${kind}) is not part of the backup`);
      continue;
    }
    await refuseBlockJob(hypervisor, machine, volume.target);
    volumes.push(await planLiveVolume(machine, volume, request));
  }
  refuseUnsuitableSet(name, volumes);
  const host = await hypervisor.hostInfo();
  const convergeBytes = Math.round(definition.memoryBytes * request.memoryFactor);
  // Stopped vCPUs leave at most the whole memory to be written once more.
  const atLastBytes = request.whenNotConverging === 'pause-longer' ? definition.memoryBytes : 0;
  const memoryBytes = convergeBytes + atLastBytes;
  // Only what the guest writes is copied back, and nobody knows how much that will be.
  const users = volumes.map((volume) => ({ ...volume, allocatedBytes: 0 }));
  const others = await planExtras(definition, volumes[0]?.workDirectory ?? '');
  const extrasBytes = others.sizeBytes;
  const state = await placeState({ name, memoryBytes }, users, request, extrasBytes);
  warnings.push(
    ...state.warnings,
    ...(await requireScratchSpace({ machine: { name }, volumes, extrasBytes })),
  );
  warnings.push(...others.warnings);
  const workDirectories = [...new Set(volumes.map(({ workDirectory }) => workDirectory))];
  const onRamDisk = state.onRamDisk && request.ramDisk !== null ? [join(request.ramDisk, request.jobId)] : [];
  return {
    machine: { uuid, name },
    host: { name: host.hostName, libvirt: host.libvirtVersion, qemu: host.qemuVersion },
    mode: 'live',
    modeReason: request.modeReason,
    memoryBytes,
    convergeBytes,
    checkpoint: null,
    stateFile: state.file,
    stateOnRamDisk: state.onRamDisk,
    stowedStateFile: state.stowedFile,
    nvram: await planNvram(definition, workDirectories[0] ?? ''),
    extras: [...others.extras],
    volumes,
    workDirectories: [...workDirectories, ...onRamDisk],
    warnings,
  };
}

/** QEMU keeps the images of a machine that does not run on afterwards inactive, and refuses to merge them. */
function refuseSuspended({ name, status }: MachineSummary): void {
  if (status.state !== 'paused') return;
  throw new SnapshotError(
    'MACHINE_STATE_UNSUITABLE',
    `${name} is suspended; mode "live" needs a machine that runs`,
    {
      hint: `--mode save can, and leaves it suspended; or: virsh resume ${name}`,
    },
  );
}

async function planLiveVolume(
  machine: MachineSummary,
  volume: DomainVolume,
  request: Pick<LiveRequest, 'retainDirectory' | 'jobId'>,
): Promise<LiveVolume> {
  const what = `${volume.target} of ${machine.name}`;
  refuseForeignVolume(what, volume);
  const format = formatOf(what, volume);
  const image = imageOf(machine.name, volume);
  const file = await resolveImage(what, image);
  const info = await readImageInfo(file, format, { inUse: true });
  refuseUnsuitableImage(what, file, info);
  await refuseOtherUsers(what, file, machine.uuid);
  await requireUsableRetainDirectory(what, file, request.retainDirectory);
  const workDirectory = workDirectoryFor(file, request.retainDirectory, request.jobId);
  return {
    target: volume.target,
    image,
    file,
    format,
    overlay: join(workDirectory, `${volume.target}.overlay`),
    workDirectory,
    chain: [image, ...(await chainBelow(what, volume, info.backing))],
    copyable: format === 'qcow2' && info.backing === null && info.bitmaps.every(isOurCheckpoint),
    keepsBitmaps: format === 'qcow2' && info.compat !== '0.10',
    clusterBytes: info.clusterBytes,
    reads: {},
    since: null,
    virtualSizeBytes: info.virtualSizeBytes,
    allocatedBytes: await allocatedBytesOf(file, info.backing?.path),
    owner: await ownerOf(file),
  };
}
