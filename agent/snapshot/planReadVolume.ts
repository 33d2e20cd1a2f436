import { lstat, realpath } from 'node:fs/promises';
import { type ImageFormat, type ImageInfo, readImageInfo } from '../../common/qemuImage.ts';
import { isHalfRestored } from '../../common/restoreMark.ts';
import type { Ownership } from '../../common/files.ts';
import { messageOf } from '../../common/errors.ts';
import type { DomainVolume } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import { allocatedBytesOf, formatOf, ownerOf } from './images.ts';
import {
  imageOf,
  offlineStoresEncrypted,
  refuseInEveryMode,
  refuseOtherUsers,
  resolveImage,
  volumeError,
} from './planVolume.ts';
import type { ReadVolume } from './readPlan.ts';
import { requireUsableRetainDirectory } from './retainDirectory.ts';

/** A volume whose place is known, but not yet what becomes of it. */
export type SeenVolume = Omit<ReadVolume, 'scratch'>;

interface ReadVolumeRequest {
  readonly mode: 'disk' | 'offline';
  readonly retainDirectory: string | null;
}

/** A device has an owner for all its machines; an image that is made of it is root's, until libvirt lends it. */
const fileOfDevice: Ownership = { uid: 0, gid: 0, mode: 0o600 };

/**
 * Looks at one volume of a `disk` or `offline` backup. Changes nothing.
 * @throws SnapshotError with why it cannot be read in this mode
 */
export async function planReadVolume(
  hypervisor: Hypervisor,
  machine: MachineSummary,
  volume: DomainVolume,
  request: ReadVolumeRequest,
): Promise<SeenVolume> {
  const what = `${volume.target} of ${machine.name}`;
  refuseInEveryMode(what, volume);
  if (request.mode === 'disk' && volume.encrypted) throw decrypted(what);
  const format = formatOf(what, volume);
  const common = { target: volume.target, format, reads: {}, since: null };
  if (volume.sourceKind === 'network') {
    const virtualSizeBytes = await networkSize(hypervisor, machine, volume, request.mode);
    const address = volume.address ?? '';
    const place = { kind: 'network', image: address, file: address, owner: fileOfDevice } as const;
    const size = { virtualSizeBytes, allocatedBytes: virtualSizeBytes };
    return { ...common, ...place, ...size, encrypted: false, keepsBitmaps: false };
  }
  const image = await localImageOf(hypervisor, machine.name, what, volume);
  const { kind, file } = await resolveSource(what, image);
  if (request.mode === 'offline') await refuseOtherUsers(what, file, machine.uuid);
  if (kind === 'block') await refuseHalfRestored(volume.target, what, file);
  const info = await readImageInfo(file, format, { inUse: true });
  refuseUnsuitable(what, file, info, kind, request.mode);
  if (kind === 'file') await requireUsableRetainDirectory(what, file, request.retainDirectory);
  return {
    ...common,
    kind,
    image,
    file,
    encrypted: volume.encrypted || info.encrypted,
    virtualSizeBytes: info.virtualSizeBytes,
    // Which blocks of a device are in use nobody knows before it is read.
    allocatedBytes:
      kind === 'block' ? info.virtualSizeBytes : await allocatedBytesOf(file, info.backing?.path),
    owner: kind === 'block' ? fileOfDevice : await ownerOf(file),
    // Version 2 has no place for them.
    keepsBitmaps: format === 'qcow2' && info.compat !== '0.10',
    clusterBytes: info.clusterBytes,
  };
}

async function networkSize(
  hypervisor: Hypervisor,
  machine: MachineSummary,
  volume: DomainVolume,
  mode: 'disk' | 'offline',
): Promise<number> {
  if (mode === 'disk') return hypervisor.volumeSizeBytes(machine.uuid, volume.target);
  throw volumeError(
    'VOLUME_UNSUPPORTED',
    `${volume.target} of ${machine.name}`,
    `is a network volume (${volume.address ?? 'unknown'}), which only a running QEMU can read`,
    `start the machine, and mode "disk" can: virsh start ${machine.name}; --mode disk`,
  );
}

/** Where a definition, or the storage pool that it names, says that the image is. */
async function localImageOf(
  hypervisor: Hypervisor,
  machineName: string,
  what: string,
  volume: DomainVolume,
): Promise<string> {
  const { pool, sourceKind } = volume;
  if (sourceKind === 'file' || sourceKind === 'block') return imageOf(machineName, volume);
  if (pool === undefined)
    throw volumeError('VOLUME_UNSUPPORTED', what, `is a ${sourceKind} volume, not an image file`);
  try {
    return await hypervisor.volumePath(pool.name, pool.volume);
  } catch (error) {
    if (!(error instanceof HypervisorError) || error.retryable) throw error;
    throw new SnapshotError(
      'MISSING_NECESSARY_FILES',
      `${what} is ${pool.volume} of the storage pool ${pool.name}, which cannot be found: ${messageOf(error)}`,
      { cause: error, hint: `virsh pool-start ${pool.name}; virsh vol-list ${pool.name}` },
    );
  }
}

async function resolveSource(
  what: string,
  image: string,
): Promise<{ readonly kind: 'file' | 'block'; readonly file: string }> {
  const device = await blockDeviceOf(image);
  if (device !== undefined) return { kind: 'block', file: device };
  return { kind: 'file', file: await resolveImage(what, image) };
}

/** The device that a path leads to; `undefined` for everything else, what is not there included. */
async function blockDeviceOf(image: string): Promise<string | undefined> {
  try {
    const file = await realpath(image);
    return (await lstat(file)).isBlockDevice() ? file : undefined;
  } catch {
    // `resolveImage` says what is wrong with it.
    return undefined;
  }
}

/** What a restore has not ended on is no state that the machine ever had. */
async function refuseHalfRestored(target: string, what: string, device: string): Promise<void> {
  if (!(await isHalfRestored(device))) return;
  throw new SnapshotError('CORRUPT_DISK_IMAGE_FOUND', `${what}: ${device} is half restored`, {
    hint: `wait for its restore, or repeat it: stillpoint restore BACKUP --volume ${target} --to-device ${device}`,
  });
}

function refuseUnsuitable(
  what: string,
  file: string,
  info: ImageInfo,
  kind: 'file' | 'block',
  mode: 'disk' | 'offline',
): void {
  if (info.corrupt) {
    throw new SnapshotError('CORRUPT_DISK_IMAGE_FOUND', `${what}: ${file} is marked corrupt`, {
      hint: `with the machine off: qemu-img check ${file}`,
    });
  }
  if (!info.encrypted) return;
  if (mode === 'disk') throw decrypted(what);
  // Its file is copied as it stands, so that it must be one, and whole.
  if (kind !== 'file' || info.backing !== null || info.dataFile !== undefined)
    throw volumeError('VOLUME_ENCRYPTED', what, 'is encrypted, and not one file that stands alone');
}

function decrypted(what: string): SnapshotError {
  return volumeError(
    'VOLUME_ENCRYPTED',
    what,
    'is encrypted, and QEMU would serve it decrypted',
    offlineStoresEncrypted,
  );
}

/** The image is stored by a copy of its file; what QEMU reads of it would be decrypted. */
export function isCopiedWhole({ encrypted, format }: { encrypted: boolean; format: ImageFormat }): boolean {
  return encrypted && format === 'qcow2';
}
