import { createHash } from 'node:crypto';
import type { Manifest } from './manifest.ts';

/**
 * The UUID that a template's backups carry in the place of a machine's: version 8 (RFC 9562), made of what tells one
 * template from another, so that its next backup has the same.
 * @param image the path as it was given, normalised
 */
export function templateUuid(template: {
  readonly host: string;
  readonly name: string;
  readonly image: string;
}): string {
  const { host, name, image } = template;
  const bytes = createHash('sha256')
    .update(['template', host, name, image].join('\0'))
    .digest()
    .subarray(0, 16);
  bytes.writeUInt8((bytes.readUInt8(6) & 0x0f) | 0x80, 6);
  bytes.writeUInt8((bytes.readUInt8(8) & 0x3f) | 0x80, 8);
  const hex = bytes.toString('hex');
  const ends = [8, 12, 16, 20, 32];
  return ends.map((end, index) => hex.slice(ends[index - 1] ?? 0, end)).join('-');
}

/**
 * True for the backup of a template: an image that no machine runs. Nothing of its own in the manifest says so; its
 * UUID is the one that only a template of this host, name and path has.
 */
export function isTemplate({
  machine,
  host,
  volumes,
}: Pick<Manifest, 'machine' | 'host' | 'volumes'>): boolean {
  const image = volumes[0]?.source;
  if (image === undefined || volumes.length > 1) return false;
  return machine.uuid === templateUuid({ host: host.name, name: machine.name, image });
}
