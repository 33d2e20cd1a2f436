import { lstat, stat } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import type { Ownership } from '../../common/files.ts';
import { type ImageFormat, readImageInfo } from '../../common/qemuImage.ts';
import { rememberedOwner } from '../../common/xattr.ts';
import { type DomainVolume, DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import { planExtras } from './extras.ts';
import {
  imageOf,
  isLeftOut,
  refuseForeignVolume,
  refuseOtherUsers,
  resolveImage,
  volumeError,
} from './planVolume.ts';
import {
  planNvram,
  refuseBusyMachine,
  refuseTpm,
  refuseUnsuitableSet,
  refuseUnsuitableStatus,
} from './preflight.ts';
import { socketPathBytesMax, socketPathOf } from './pullBackup.ts';
import type { ReadPlan, ReadVolume } from './readPlan.ts';
import { requireUsableRetainDirectory } from './retainDirectory.ts';
import { requireScratchSpace } from './scratchSpace.ts';
import { workDirectoryFor } from './workspace.ts';

export interface ReadRequest {
  readonly jobId: string;
  readonly machineUuid: string;
  readonly mode: 'disk' | 'offline';
  readonly modeReason: string;
  readonly retainDirectory: string | null;
  /** Where sockets are made. */
  readonly runDirectory: string;
}

/**
 * Looks at a machine and plans a backup that reads its volumes where they are: through QEMU while it runs (`disk`),
 * or from the images while it is off (`offline`). Changes nothing.
 * @throws SnapshotError with what is unsuitable and what to do about it
 */
export async function planRead(hypervisor: Hypervisor, request: ReadRequest): Promise<ReadPlan> {
  const machine = await hypervisor.machine(request.machineUuid);
  const { uuid, name } = machine;
  const warnings: string[] = [];
  if (request.mode === 'disk') {
    refuseOff(machine);
    refuseUnsuitableStatus(name, machine.status);
    await refuseBusyMachine(hypervisor, uuid, name);
  } else {
    refuseRunning(machine);
    if (machine.hasManagedSave)
      warnings.push('its managed save image is not part of the backup, and stays valid');
  }
  const kind = request.mode === 'disk' ? 'live' : 'persistent';
  const definition = DomainXml.parse(await hypervisor.definition(uuid, kind));
  refuseTpm(definition);
  const volumes: ReadVolume[] = [];
  for (const volume of definition.volumes) {
    if (isLeftOut(volume))
      warnings.push(
        `${volume.target} (${volume.readOnly ? 'read-only ' : ''}${volume.device}) is not part of the backup`,
      );
    else volumes.push(await planReadVolume(machine, volume, request));
  }
  refuseUnsuitableSet(name, volumes);
  const workDirectories = [
    ...new Set(volumes.map(({ file }) => workDirectoryFor(file, request.retainDirectory, request.jobId))),
  ];
  const [first = ''] = workDirectories;
  const others = await planExtras(definition, first, await hypervisor.snapshotNames(uuid));
  warnings.push(...others.warnings);
  const host = await hypervisor.hostInfo();
  const plan: ReadPlan = {
    machine: { uuid, name },
    host: { name: host.hostName, libvirt: host.libvirtVersion, qemu: host.qemuVersion },
    mode: request.mode,
    modeReason: request.modeReason,
    // Under a managed save image the guest is not shut down: what it had not written yet is in its memory.
    consistency: request.mode === 'offline' && !machine.hasManagedSave ? 'offline' : 'crash',
    checkpoint: null,
    socketDirectory: request.mode === 'disk' ? join(request.runDirectory, request.jobId) : null,
    nvram: await planNvram(definition, first),
    extras: [...others.extras],
    volumes,
    workDirectories,
    warnings,
  };
  if (plan.mode === 'offline') return plan;
  refuseLongSocketPath(plan);
  return { ...plan, warnings: [...warnings, ...(await requireScratchSpace(plan))] };
}

function refuseOff({ name, status }: MachineSummary): void {
  if (status.state !== 'shut-off' && status.state !== 'crashed') return;
  throw new SnapshotError('MACHINE_OFF', `${name} is off; mode "disk" reads through a running QEMU`, {
    hint: 'mode "offline" can, and "auto" chooses it: --mode auto',
  });
}

function refuseRunning({ name, status }: MachineSummary): void {
  if (status.state === 'shut-off' || status.state === 'crashed') return;
  throw new SnapshotError(
    'MACHINE_RUNNING',
    `${name} is ${status.state}; mode "offline" reads images that nobody writes to`,
    { hint: '--mode auto chooses what fits; or shut it down first' },
  );
}

async function planReadVolume(
  machine: MachineSummary,
  volume: DomainVolume,
  request: ReadRequest,
): Promise<ReadVolume> {
  const what = `${volume.target} of ${machine.name}`;
  refuseForeignVolume(what, volume);
  const format = formatOf(what, volume);
  const image = imageOf(machine.name, volume);
  const file = await resolveImage(what, image);
  if (request.mode === 'offline') await refuseOtherUsers(what, file, machine.uuid);
  const info = await readImageInfo(file, format, { inUse: true });
  if (info.corrupt) {
    throw new SnapshotError('CORRUPT_DISK_IMAGE_FOUND', `${what}: ${file} is marked corrupt`, {
      hint: `with the machine off: qemu-img check ${file}`,
    });
  }
  if (info.encrypted)
    throw volumeError('VOLUME_ENCRYPTED', what, 'is encrypted; what is made of it would not be');
  await requireUsableRetainDirectory(what, file, request.retainDirectory);
  const workDirectory = workDirectoryFor(file, request.retainDirectory, request.jobId);
  return {
    target: volume.target,
    image,
    file,
    format,
    virtualSizeBytes: info.virtualSizeBytes,
    allocatedBytes: await allocatedBytesOf(file, info.backing?.path),
    owner: await ownerOf(file),
    scratch: request.mode === 'disk' ? join(workDirectory, `${volume.target}.scratch`) : null,
    // Version 2 has no place for them.
    keepsBitmaps: format === 'qcow2' && info.compat !== '0.10',
    reads: {},
    since: null,
  };
}

/** @throws SnapshotError VOLUME_UNSUPPORTED */
export function formatOf(what: string, volume: DomainVolume): ImageFormat {
  if (volume.format === 'qcow2' || volume.format === 'raw') return volume.format;
  throw volumeError('VOLUME_UNSUPPORTED', what, `has the format ${volume.format ?? 'unknown'}`);
}

/** What the image takes on its disk, and what it stands on: the stored volume stands alone. */
export async function allocatedBytesOf(file: string, backing: string | undefined): Promise<number> {
  let bytes = (await stat(file)).blocks * 512;
  if (backing !== undefined && isAbsolute(backing)) bytes += (await stat(backing)).blocks * 512;
  return bytes;
}

/** Owner, group and mode of an image while no QEMU has it. */
export async function ownerOf(file: string): Promise<Ownership> {
  const { uid, gid, mode } = await lstat(file);
  const remembered = await rememberedOwner(file);
  return { uid: remembered?.uid ?? uid, gid: remembered?.gid ?? gid, mode: mode & 0o7777 };
}

function refuseLongSocketPath(plan: ReadPlan): void {
  const path = socketPathOf(plan);
  if (Buffer.byteLength(path) <= socketPathBytesMax) return;
  throw new SnapshotError('CANNOT_BEGIN_BACKUP', `${path} is too long for a socket`, {
    hint: 'choose a shorter directory for agent.socket in the configuration',
  });
}
