import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { hashFile } from '../../common/copy.ts';
import { newId } from '../../common/ids.ts';
import { isHalfRestored } from '../../common/restoreMark.ts';
import { formatBytes } from '../../common/units.ts';
import type { VolumeSource } from '../../common/volumeSource.ts';
import { readQcow2Header } from '../../storage/directory/qcow2Header.ts';
import type { ManifestVolume } from '../../storage/manifest.ts';
import type { BackupEntry, Storage, StoredFile } from '../../storage/storage.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { answerMs, ImageExport } from '../snapshot/imageExport.ts';
import { makeRunDirectory } from '../snapshot/runDirectory.ts';
import { type BlockDevice, leadsTo, readBlockDevice, usersOfDevice } from './blockDevice.ts';
import { RestoreError } from './errors.ts';
import { isOff } from './request.ts';
import { type ImageSource, imagesOf } from './takenPaths.ts';
import { writeDevice, type WriteOptions } from './writeDevice.ts';

/** Whatever looks at new devices (udev) has them open no longer than this. */
const patienceMs = 3000;
const pollMs = 100;

/** What is asked about the machines of this host. */
type Machines = Pick<Hypervisor, 'machines'> & ImageSource;

/** One volume of a backup, and the block device that it overwrites. */
export interface DevicePlan {
  readonly backup: {
    readonly id: string;
    readonly storage: string;
    readonly machine: string;
    readonly pointInTime: string;
  };
  readonly target: string;
  readonly sizeBytes: number;
  readonly device: { readonly path: string; readonly sizeBytes: number };
  /** For the operator to see before it happens. */
  readonly remarks: readonly string[];
}

/**
 * Plans the restore of a volume onto a block device and finds what stands in its way. Changes nothing.
 * @param target of the volume; a backup of one volume needs none
 * @throws RestoreError DEVICE_UNSUITABLE, DEVICE_BUSY, VOLUME_UNKNOWN, RESTORE_TARGET_UNCLEAR, BACKUP_DAMAGED
 */
export async function planDeviceRestore(
  hypervisor: Machines,
  entry: BackupEntry,
  {
    target,
    device: name,
    signal,
  }: { readonly target: string | undefined; readonly device: string; readonly signal: AbortSignal },
): Promise<DevicePlan> {
  const { volume, id, machine } = volumeOf(entry, target);
  const device = await readBlockDevice(name);
  if (device.sizeBytes < volume.virtualSizeBytes) {
    throw new RestoreError(
      'DEVICE_UNSUITABLE',
      `${device.path} has ${formatBytes(device.sizeBytes)}, and ${volume.target} needs ${formatBytes(volume.virtualSizeBytes)}`,
      { hint: 'lsblk --paths --bytes; choose a larger device' },
    );
  }
  await requireFree(hypervisor, device, machine.uuid, signal);
  const behindBytes = device.sizeBytes - volume.virtualSizeBytes;
  return {
    backup: { id, storage: entry.storage, machine: machine.name, pointInTime: entry.pointInTime },
    target: volume.target,
    sizeBytes: volume.virtualSizeBytes,
    device: { path: device.path, sizeBytes: device.sizeBytes },
    remarks: [
      `everything in the first ${formatBytes(volume.virtualSizeBytes)} of ${device.path} is overwritten, and nothing of it is kept`,
      ...(behindBytes === 0 ? [] : [`the ${formatBytes(behindBytes)} behind that stay as they are`]),
      ...((await isHalfRestored(device.path)) ? ['an earlier restore onto it has not ended'] : []),
    ],
  };
}

/**
 * Does what was planned. What can be known before the first byte is written is asked for again: the operator may have
 * thought about it for long.
 * @param options.runDirectory where a socket may be made
 * @throws RestoreError DEVICE_HALF_WRITTEN, WRITTEN_DIFFERS, BACKUP_DAMAGED, and those of the plan
 */
export async function restoreToDevice(
  hypervisor: Machines,
  stored: Pick<Storage, 'open'>,
  entry: BackupEntry,
  plan: DevicePlan,
  options: WriteOptions & { readonly runDirectory: string },
): Promise<void> {
  const { volume, machine } = volumeOf(entry, plan.target);
  const write = async (source: VolumeSource): Promise<void> => {
    if (source.virtualSizeBytes !== plan.sizeBytes)
      throw damaged(entry, `${volume.target} has ${source.virtualSizeBytes} bytes, not ${plan.sizeBytes}`);
    const device = await readBlockDevice(plan.device.path);
    await requireFree(hypervisor, device, machine.uuid, options.signal);
    if (device.sizeBytes !== plan.device.sizeBytes)
      throw new RestoreError('DEVICE_UNSUITABLE', `${device.path} is another device than it was`, {
        hint: 'lsblk --paths; repeat the command',
      });
    await writeDevice(source, device.path, options);
  };
  const artifact = {
    path: join(entry.directory, volume.file),
    sizeBytes: volume.storedBytes,
    sha256: volume.sha256,
  };
  const opened = await stored.open(artifact);
  if (opened !== null) return write(opened.source);
  await requireWhole(entry, artifact, volume, options.signal);
  const directory = join(options.runDirectory, newId());
  await makeRunDirectory(directory);
  try {
    const image = { target: volume.target, file: artifact.path, format: volume.format };
    await using exported = await ImageExport.open(image, directory, { answerMs, signal: options.signal });
    await write(exported.volume);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

function volumeOf(
  entry: BackupEntry,
  target: string | undefined,
): {
  readonly volume: ManifestVolume;
  readonly id: string;
  readonly machine: { readonly name: string; readonly uuid: string };
} {
  const { manifest } = entry;
  if (manifest === null || entry.state !== 'Active')
    throw damaged(entry, entry.problem ?? 'it has no manifest');
  const { volumes, id, machine } = manifest;
  const known = `it has: ${volumes.map((one) => one.target).join(', ')}`;
  if (target === undefined && volumes.length > 1)
    throw new RestoreError('RESTORE_TARGET_UNCLEAR', 'the backup has several volumes', {
      hint: `--volume TARGET; ${known}`,
    });
  const volume = target === undefined ? volumes[0] : volumes.find((one) => one.target === target);
  if (volume === undefined)
    throw new RestoreError('VOLUME_UNKNOWN', `the backup has no volume ${target}`, { hint: known });
  if (volume.encrypted === true)
    throw new RestoreError(
      'DEVICE_UNSUITABLE',
      `${volume.target} is encrypted: only who has its key can open it`,
      {
        hint: `restore the file: --volume ${volume.target} --to DIR`,
      },
    );
  return { volume, id, machine };
}

/** The file is read once before the device is touched: what is overwritten is gone. */
async function requireWhole(
  entry: BackupEntry,
  { path, sha256 }: StoredFile,
  { format }: ManifestVolume,
  signal: AbortSignal,
): Promise<void> {
  if ((await hashFile(path, { signal, digest: 'chunks' })).sha256 !== sha256)
    throw damaged(entry, `${path} is not what was stored`);
  if (format === 'raw') return;
  const header = await readQcow2Header(path);
  if (
    header === null ||
    header.hasBackingFile ||
    header.hasDataFile ||
    header.isCorrupt ||
    header.isEncrypted
  )
    throw damaged(entry, `${path} is not a standalone qcow2 image`);
}

/**
 * Nobody has the device open, and no machine has it for a disk, but for the one that was backed up while it is off. Who
 * has it mounted is told by the kernel when it is opened.
 * @throws RestoreError DEVICE_BUSY
 */
async function requireFree(
  hypervisor: Machines,
  device: BlockDevice,
  uuid: string,
  signal: AbortSignal,
): Promise<void> {
  for (const machine of await hypervisor.machines()) {
    if (machine.uuid === uuid && isOff(machine) && !machine.hasManagedSave) continue;
    for (const path of await imagesOf(hypervisor, machine))
      if (await leadsTo(device, path))
        throw busy(device, `it is a disk of the machine ${machine.name}`, `virsh domblklist ${machine.name}`);
  }
  const deadline = performance.now() + patienceMs;
  for (;;) {
    const user = (await usersOfDevice(device, signal))[0];
    if (user === undefined) return;
    if (performance.now() > deadline)
      throw busy(
        device,
        `process ${user.pid} (${user.command}) has it open`,
        `ps ${user.pid}; lsblk ${device.path}`,
      );
    await sleep(pollMs, undefined, { signal });
  }
}

function busy(device: BlockDevice, why: string, hint: string): RestoreError {
  return new RestoreError('DEVICE_BUSY', `${device.path} is in use: ${why}`, { hint, retryable: true });
}

function damaged(entry: BackupEntry, why: string): RestoreError {
  return new RestoreError('BACKUP_DAMAGED', `${entry.directory} cannot be restored: ${why}`, {
    hint: `nothing was changed; stillpoint verify --data ${entry.id ?? entry.directory}`,
  });
}
