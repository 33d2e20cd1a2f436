import { lstat, realpath } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { documentPath } from '../../common/documents.ts';
import { type ImageInfo, readImageInfo } from '../../common/qemuImage.ts';
import { rememberedOwner } from '../../common/xattr.ts';
import type { DomainVolume } from '../hypervisor/domainXml.ts';
import { SnapshotError } from './errors.ts';
import { foreignWriters } from './imageUsers.ts';
import type { PlannedVolume } from './plan.ts';
import { requireUsableRetainDirectory } from './retainDirectory.ts';
import { workDirectoryFor } from './workspace.ts';

/** Removable and read-only media hold nothing of the machine's own; they stay where they are. */
export function isLeftOut(volume: DomainVolume): boolean {
  return (
    volume.device === 'cdrom' || volume.device === 'floppy' || volume.readOnly || volume.sourceKind === 'none'
  );
}

/**
 * Looks at one volume and plans its part of the backup. Changes nothing.
 * @throws SnapshotError with why it cannot be backed up in this mode
 */
export async function planVolume(
  machine: { readonly uuid: string; readonly name: string },
  volume: DomainVolume,
  request: { readonly retainDirectory: string | null; readonly jobId: string },
): Promise<PlannedVolume> {
  const what = `${volume.target} of ${machine.name}`;
  refuseUnsupportedVolume(what, volume);
  const image = imageOf(machine.name, volume);
  const file = await resolveImage(what, image);
  const info = await readImageInfo(file, 'qcow2', { inUse: true });
  refuseUnsuitableImage(what, file, info);
  const base = info.backing;
  await refuseOtherUsers(what, file, machine.uuid);
  const workDirectory = workDirectoryFor(file, request.retainDirectory, request.jobId);
  await requireUsableRetainDirectory(what, file, request.retainDirectory);
  const below = await chainBelow(what, volume, base);
  return {
    target: volume.target,
    image,
    file,
    frozen: join(workDirectory, `${volume.target}.frozen`),
    overlay: join(workDirectory, `${volume.target}.overlay`),
    workDirectory,
    base: base === null ? null : { path: base.path, format: base.format ?? 'raw' },
    chain: [image, ...below],
    virtualSizeBytes: info.virtualSizeBytes,
    layout: [...info.layout],
    owner: await rememberedOwner(file),
    allocatedBytes: info.allocatedBytes,
    // Version 2 has no place for them.
    keepsBitmaps: info.compat !== '0.10',
  };
}

/** The path that a definition gives. @throws SnapshotError XML_INCONSISTENCY */
export function imageOf(machineName: string, volume: DomainVolume): string {
  if (volume.path !== undefined && isAbsolute(volume.path)) return volume.path;
  throw new SnapshotError('XML_INCONSISTENCY', `${volume.target} of ${machineName} names no absolute path`, {
    hint: `virsh domblklist ${machineName}`,
  });
}

/**
 * What no overlay can be put over.
 * @throws SnapshotError CORRUPT_DISK_IMAGE_FOUND, INTERNAL_SNAPSHOTS, VOLUME_ENCRYPTED, VOLUME_UNSUPPORTED,
 * RELATIVE_BACKING
 */
export function refuseUnsuitableImage(what: string, file: string, info: ImageInfo): void {
  if (info.corrupt) {
    throw new SnapshotError('CORRUPT_DISK_IMAGE_FOUND', `${what}: ${file} is marked corrupt`, {
      hint: `with the machine off: qemu-img check ${file}`,
    });
  }
  if (info.internalSnapshots.length > 0) {
    throw new SnapshotError(
      'INTERNAL_SNAPSHOTS',
      `${what} holds internal snapshots: ${info.internalSnapshots.join(', ')}`,
      {
        hint: `with the machine off: qemu-img snapshot -d ${info.internalSnapshots[0]} ${file}`,
      },
    );
  }
  if (info.encrypted)
    throw volumeError(
      'VOLUME_ENCRYPTED',
      what,
      'is encrypted; its overlay would not be',
      offlineStoresEncrypted,
    );
  if (info.dataFile !== undefined)
    throw volumeError('VOLUME_UNSUPPORTED', what, 'keeps its data in an external data file');
  const base = info.backing;
  if (base !== null && !isAbsolute(base.path)) {
    throw new SnapshotError(
      'RELATIVE_BACKING',
      `${what}: ${file} names its backing file relatively (${base.path})`,
      {
        hint: `with the machine off: qemu-img rebase -u -F ${base.format ?? 'qcow2'} -b ABSOLUTE-PATH ${file}`,
      },
    );
  }
}

/**
 * The paths below the top image, as QEMU has them open. They must be letter by letter what the headers say: the
 * restored machine's chain is read from the headers, and compared with these.
 */
export async function chainBelow(
  what: string,
  volume: DomainVolume,
  base: ImageInfo['backing'],
): Promise<string[]> {
  const below = (volume.backingChain ?? []).map((element) => {
    if (element.path === undefined)
      throw volumeError('VOLUME_UNSUPPORTED', what, 'stands on something that is not a file');
    return element.path;
  });
  let header = base;
  for (const path of [...below, undefined]) {
    if (header?.path !== path) {
      throw new SnapshotError(
        'XML_INCONSISTENCY',
        `${what}: an image's header names ${header?.path ?? 'no backing file'}, but the machine runs on ${path ?? 'none'}`,
        {
          hint: 'the two must be the same, letter by letter; look at them: qemu-img info -U --backing-chain, virsh dumpxml',
        },
      );
    }
    if (header === null || path === undefined) break;
    header = header.format === 'qcow2' ? (await readImageInfo(path, 'qcow2', { inUse: true })).backing : null;
  }
  return below;
}

/** A kind of volume that a mode cannot do. */
export function volumeError(
  code: 'VOLUME_UNSUPPORTED' | 'VOLUME_ENCRYPTED' | 'VOLUME_SHARED',
  what: string,
  why: string,
  hint = `${documentPath('docs/SUPPORT.md')} lists what each mode can do with each kind of volume; detach it, or exclude the machine`,
): SnapshotError {
  return new SnapshotError(code, `${what} ${why}`, { hint });
}

/**
 * What no mode of this version can do.
 * @throws SnapshotError VOLUME_UNSUPPORTED, VOLUME_SHARED
 */
export function refuseInEveryMode(what: string, volume: DomainVolume): void {
  if (volume.device !== 'disk') throw volumeError('VOLUME_UNSUPPORTED', what, `is a ${volume.device}`);
  if (volume.shareable)
    throw volumeError('VOLUME_SHARED', what, 'is shared with other machines, which would not be stopped');
  if (volume.transient)
    throw volumeError('VOLUME_UNSUPPORTED', what, 'is transient: its changes are thrown away');
}

/**
 * What no overlay can be put over.
 * @throws SnapshotError VOLUME_UNSUPPORTED, VOLUME_SHARED, VOLUME_ENCRYPTED
 */
export function refuseForeignVolume(what: string, volume: DomainVolume): void {
  refuseInEveryMode(what, volume);
  if (volume.sourceKind !== 'file') {
    const kind = volume.sourceKind === 'volume' ? 'storage pool' : volume.sourceKind;
    const readable = ['block', 'volume', 'network'].includes(volume.sourceKind);
    throw volumeError(
      'VOLUME_UNSUPPORTED',
      what,
      `is a ${kind} volume, not an image file`,
      readable ? 'mode "disk" can: --mode disk' : undefined,
    );
  }
  if (volume.encrypted)
    throw volumeError(
      'VOLUME_ENCRYPTED',
      what,
      'is encrypted; what is made of it would not be',
      offlineStoresEncrypted,
    );
}

/** What to do with an encrypted volume. */
export const offlineStoresEncrypted =
  'mode "offline" stores it encrypted, as it stands, while the machine is off: --mode offline';

function refuseUnsupportedVolume(what: string, volume: DomainVolume): void {
  refuseForeignVolume(what, volume);
  if (volume.format === 'raw') {
    throw new SnapshotError('VOLUME_RAW', `${what} is a raw image; after mode "save" it would be qcow2`, {
      hint: 'mode "disk" can: --mode disk; or, with the machine off: qemu-img convert -O qcow2, and change its definition',
    });
  }
  if (volume.format !== 'qcow2')
    throw volumeError('VOLUME_UNSUPPORTED', what, `has the format ${volume.format ?? 'unknown'}`);
}

/**
 * The file that a volume's path leads to.
 * @throws SnapshotError MISSING_NECESSARY_FILES, VOLUME_UNSUPPORTED
 */
export async function resolveImage(what: string, image: string): Promise<string> {
  try {
    const file = await realpath(image);
    if (!(await lstat(file)).isFile())
      throw volumeError('VOLUME_UNSUPPORTED', what, `is not a regular file: ${file}`);
    return file;
  } catch (error) {
    if (error instanceof SnapshotError) throw error;
    throw new SnapshotError('MISSING_NECESSARY_FILES', `${what}: ${image} cannot be found`, {
      hint: 'the machine runs on an image that has no name any more: do not stop it before you have copied its disk',
      cause: error,
    });
  }
}

/** @throws SnapshotError IMAGE_LOCKED */
export async function refuseOtherUsers(what: string, file: string, uuid: string): Promise<void> {
  const writer = (await foreignWriters(file, uuid))[0];
  if (writer === undefined) return;
  throw new SnapshotError(
    'IMAGE_LOCKED',
    `${what}: process ${writer.pid} (${writer.command}) has ${file} open for writing`,
    {
      hint: 'end that process first, or wait for it',
      retryable: true,
    },
  );
}
