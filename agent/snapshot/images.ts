import { lstat, stat } from 'node:fs/promises';
import { isAbsolute } from 'node:path';
import type { Ownership } from '../../common/files.ts';
import type { ImageFormat } from '../../common/qemuImage.ts';
import { rememberedOwner } from '../../common/xattr.ts';
import type { DomainVolume } from '../hypervisor/domainXml.ts';
import { volumeError } from './planVolume.ts';

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
