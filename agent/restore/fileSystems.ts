import type { VolumeSource } from '../../common/volumeSource.ts';

/** A file system, or what else was found, on a volume of a guest. */
export interface FoundFileSystem {
  /** Number of its partition; 0 for one that is on the whole volume. */
  readonly partition: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly kind: FileSystemKind;
}

export type FileSystemKind =
  | 'ext'
  | 'xfs'
  | 'btrfs'
  | 'ntfs'
  | 'fat'
  | 'swap'
  | 'LVM'
  | 'RAID'
  | 'LUKS'
  | 'unknown';

const sectorBytes = 512;
/** More entries than this no honest table has. */
const gptEntriesMax = 256;
/** As a chain of logical partitions; the kernel reads as many. */
const logicalMax = 128;

interface Stretch {
  readonly partition: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/**
 * The file systems of a volume: that of the whole of it, or those of its partitions (GPT, UEFI 2.10 section 5.3; MBR
 * with logical partitions). The tables were written by a guest: whatever does not lie inside the volume is left out.
 */
export async function findFileSystems(volume: VolumeSource): Promise<readonly FoundFileSystem[]> {
  const whole = { partition: 0, offsetBytes: 0, lengthBytes: volume.virtualSizeBytes };
  const kind = await kindOf(volume, whole);
  if (kind !== 'unknown') return [{ ...whole, kind }];
  const found: FoundFileSystem[] = [];
  for (const stretch of await partitionsOf(volume)) {
    const { offsetBytes, lengthBytes } = stretch;
    if (lengthBytes <= 0 || offsetBytes + lengthBytes > volume.virtualSizeBytes) continue;
    found.push({ ...stretch, kind: await kindOf(volume, stretch) });
  }
  return found;
}

const magics: readonly (readonly [FileSystemKind, number, string])[] = [
  ['xfs', 0, 'XFSB'],
  ['LUKS', 0, 'LUKS\xba\xbe'],
  ['ntfs', 3, 'NTFS    '],
  ['fat', 0x36, 'FAT'],
  ['fat', 0x52, 'FAT32'],
  ['LVM', 0x218, 'LVM2 001'],
  ['swap', 0xff6, 'SWAPSPACE2'],
  // Linux software RAID, version 1.2, where mdadm puts it.
  ['RAID', 0x1000, '\xfc\x4e\x2b\xa9'],
  ['ext', 0x438, '\x53\xef'],
  ['btrfs', 0x10040, '_BHRfS_M'],
];

async function kindOf(volume: VolumeSource, { offsetBytes, lengthBytes }: Stretch): Promise<FileSystemKind> {
  const head = await read(volume, offsetBytes, Math.min(0x10048, lengthBytes));
  const found = magics.find(([, at, magic]) => head.toString('latin1', at, at + magic.length) === magic);
  return found?.[0] ?? 'unknown';
}

async function partitionsOf(volume: VolumeSource): Promise<readonly Stretch[]> {
  const mbr = await read(volume, 0, sectorBytes);
  if (mbr.length < sectorBytes || mbr.readUInt16LE(510) !== 0xaa55) return [];
  const entries = mbrEntries(mbr);
  // A protective MBR stands before a GPT.
  if (entries.some(({ type }) => type === 0xee)) return gptPartitions(volume);
  const found: Stretch[] = [];
  for (const { partition, type, startSector, sectors } of entries) {
    if (isExtended(type)) found.push(...(await logicalPartitions(volume, startSector)));
    else if (type !== 0) found.push(stretchOf(partition, startSector, sectors));
  }
  return found;
}

async function gptPartitions(volume: VolumeSource): Promise<readonly Stretch[]> {
  for (const sector of [512, 4096]) {
    const header = await read(volume, sector, 92);
    if (header.toString('latin1', 0, 8) !== 'EFI PART') continue;
    const tableBytes = Number(header.readBigUInt64LE(72)) * sector;
    const entryBytes = header.readUInt32LE(84);
    if (entryBytes < 128 || entryBytes > 4096) return [];
    const count = Math.min(header.readUInt32LE(80), gptEntriesMax);
    const table = await read(volume, tableBytes, count * entryBytes);
    return Array.from({ length: Math.floor(table.length / entryBytes) }, (_, index) => {
      const entry = table.subarray(index * entryBytes);
      if (entry.subarray(0, 16).every((byte) => byte === 0)) return [];
      const first = Number(entry.readBigUInt64LE(32));
      const last = Number(entry.readBigUInt64LE(40));
      return [
        { partition: index + 1, offsetBytes: first * sector, lengthBytes: (last - first + 1) * sector },
      ];
    }).flat();
  }
  return [];
}

/** Each table of the chain names one partition, relative to itself, and the next one, relative to the first. */
async function logicalPartitions(volume: VolumeSource, extendedSector: number): Promise<readonly Stretch[]> {
  const found: Stretch[] = [];
  let at = extendedSector;
  while (found.length < logicalMax) {
    const table = await read(volume, at * sectorBytes, sectorBytes);
    if (table.length < sectorBytes || table.readUInt16LE(510) !== 0xaa55) break;
    const [own, next] = mbrEntries(table);
    if (own !== undefined && own.type !== 0)
      found.push(stretchOf(5 + found.length, at + own.startSector, own.sectors));
    if (next === undefined || !isExtended(next.type) || next.startSector === 0) break;
    const following = extendedSector + next.startSector;
    // A chain that goes back would have no end.
    if (following <= at) break;
    at = following;
  }
  return found;
}

function stretchOf(partition: number, startSector: number, sectors: number): Stretch {
  return { partition, offsetBytes: startSector * sectorBytes, lengthBytes: sectors * sectorBytes };
}

function isExtended(type: number): boolean {
  return type === 0x05 || type === 0x0f || type === 0x85;
}

interface MbrEntry {
  readonly partition: number;
  readonly type: number;
  readonly startSector: number;
  readonly sectors: number;
}

function mbrEntries(table: Buffer): readonly MbrEntry[] {
  return [0, 1, 2, 3].map((index) => {
    const at = 446 + 16 * index;
    return {
      partition: index + 1,
      type: table.readUInt8(at + 4),
      startSector: table.readUInt32LE(at + 8),
      sectors: table.readUInt32LE(at + 12),
    };
  });
}

/** What there is of a stretch; nothing where it lies outside the volume. */
async function read(volume: VolumeSource, offsetBytes: number, lengthBytes: number): Promise<Buffer> {
  const length = Math.min(lengthBytes, volume.virtualSizeBytes - offsetBytes);
  if (!Number.isSafeInteger(offsetBytes) || length <= 0) return Buffer.alloc(0);
  const block = Buffer.alloc(length);
  await volume.readInto(block, offsetBytes);
  return block;
}
