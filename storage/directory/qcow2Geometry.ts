import type { EditedFile } from './editedFile.ts';

/** An image whose content we do not change: what it takes is not ours to know. The message says why. */
export class ImageUnsuitable extends Error {}

/** Where everything is in an image, and how large. */
export interface Qcow2Geometry {
  readonly virtualSizeBytes: number;
  readonly clusterBytes: number;
  /** Entries of an L2 table, and of one cluster of the refcount table. */
  readonly tableEntries: number;
  /** Position of the L1 table. */
  readonly l1TableBytes: number;
  /** Position of the refcount table. */
  readonly refcountTableBytes: number;
  /** Entries of the whole refcount table. */
  readonly refcountTableEntries: number;
}

const magic = 0x514649fb; // "QFI\xfb"
const version3HeaderBytes = 104;
const refcountOrder = 4;
/** Refcounts may be behind the truth only while the image is open, which the dirty bit tells. */
const lazyRefcounts = 1;

/**
 * Reads the header of an image.
 * @throws ImageUnsuitable for anything but a standalone image without encryption, snapshots, bitmaps, external data,
 *   subclusters or compression other than deflate, whose refcounts have 16 bits; ChunkDamaged
 */
export async function readGeometry(file: EditedFile): Promise<Qcow2Geometry> {
  if (file.sizeBytes < version3HeaderBytes) throw new ImageUnsuitable('it is not a qcow2 image');
  const header = await file.read(0, version3HeaderBytes);
  const word = (position: number): number => Number(header.readBigUInt64BE(position));
  if (header.readUInt32BE(0) !== magic) throw new ImageUnsuitable('it is not a qcow2 image');
  const version = header.readUInt32BE(4);
  refuse(version !== 2 && version !== 3, `its version is ${version}`);
  refuse(word(8) !== 0, 'it has a backing file');
  refuse(header.readUInt32BE(32) !== 0, 'it is encrypted');
  refuse(header.readUInt32BE(60) !== 0, 'it has internal snapshots');
  if (version === 3) {
    refuse(word(72) !== 0, `it has features (incompatible, ${word(72)}) that only QEMU can change`);
    refuse((word(80) & ~lazyRefcounts) !== 0, `it has features (compatible, ${word(80)}) that are unknown`);
    refuse(word(88) !== 0, 'it holds bitmaps');
    refuse(header.readUInt32BE(96) !== refcountOrder, 'its refcounts have not 16 bits');
  }
  const clusterBits = header.readUInt32BE(20);
  refuse(clusterBits < 9 || clusterBits > 21, `its clusters have 2^${clusterBits} bytes`);
  const clusterBytes = 2 ** clusterBits;
  const geometry: Qcow2Geometry = {
    virtualSizeBytes: word(24),
    clusterBytes,
    tableEntries: clusterBytes / 8,
    l1TableBytes: word(40),
    refcountTableBytes: word(48),
    refcountTableEntries: (header.readUInt32BE(56) * clusterBytes) / 8,
  };
  const l1Entries = Math.ceil(geometry.virtualSizeBytes / (clusterBytes * geometry.tableEntries));
  refuse(header.readUInt32BE(36) < l1Entries, 'its L1 table is too short');
  return geometry;
}

function refuse(when: boolean, why: string): void {
  if (when) throw new ImageUnsuitable(why);
}
