import type { Change, Extent } from '../common/volumeSource.ts';
import type { DirtyExtent } from './volume.ts';

/** No qcow2 image has larger clusters (QEMU: docs/interop/qcow2.txt, cluster_bits). */
const clusterBytesMax = 2 * 1024 * 1024;
/** One bit of a bitmap stands for a cluster, or for this of a larger one (QEMU: `block-dirty-bitmap-add`). */
const granuleBytesMax = 64 * 1024;

/** So often an image may be made smaller within a cluster, and larger again, between two backups. */
const cutsMax = 16;

interface Stretch extends Extent {
  readonly dirty: boolean;
}

export interface ImageUnits {
  /** Of the image; unless known, the largest that there are. */
  readonly clusterBytes?: number | undefined;
  /** Other units in tests. */
  readonly granuleBytes?: number;
  readonly cuts?: number;
}

/**
 * Every stretch in which a volume may differ from what it was when its bitmap was started.
 *
 * QEMU marks what the guest writes, zeroes or discards. But a shrink of the image takes data and marks away together,
 * and a later growth gives zeros back that are not marked (docs/BEHAVIOUR.md). What is data without a mark was never
 * taken away, so a shrink has taken all behind the last of such data, or nothing: zeros there are changes. Zeros before
 * it were zeros already; they are named for whoever can compare them without reading.
 *
 * Two things are data without a mark and yet changed. The rest of a cluster within which the image was cut: it loses the
 * marks, if they are smaller, and keeps what was written there, or becomes zeros where there is a backing file. Behind
 * that cluster is nothing without a mark but what later cuts have made so: of as many cuts, all are in the last clusters
 * with such data, which count as changed. And what comes back as a whole cluster when a part of it is written: where
 * clusters are larger than marks, a mark counts for all of its cluster.
 *
 * @param dirty from 0 to the size, without gaps
 * @param extents the same
 * @throws Error when the two are not of one size
 */
export function changesOf(
  dirty: readonly DirtyExtent[],
  extents: readonly Extent[],
  { clusterBytes = clusterBytesMax, granuleBytes = granuleBytesMax, cuts = cutsMax }: ImageUnits = {},
): readonly Change[] {
  const sizeBytes = endOf(extents);
  if (endOf(dirty) !== sizeBytes)
    throw new Error(`the bitmap ends at ${endOf(dirty)}, the volume at ${sizeBytes}`);
  const marks = clusterBytes > granuleBytes ? widened(dirty, clusterBytes, sizeBytes) : dirty;
  const stretches = [...both(marks, extents)];
  const doubtBytes = doubtfulFrom(stretches, clusterBytes, cuts);
  const changes: Change[] = [];
  for (const { offsetBytes, lengthBytes, zero, dirty: marked } of stretches) {
    const endBytes = offsetBytes + lengthBytes;
    const middleBytes = marked ? offsetBytes : Math.min(Math.max(offsetBytes, doubtBytes), endBytes);
    if (zero && middleBytes > offsetBytes)
      changes.push({ offsetBytes, lengthBytes: middleBytes - offsetBytes, zero, unmarked: true });
    if (endBytes > middleBytes)
      changes.push({ offsetBytes: middleBytes, lengthBytes: endBytes - middleBytes, zero, unmarked: false });
  }
  return changes;
}

/** Where the last clusters with data that is not marked begin: so many, or all. */
function doubtfulFrom(stretches: readonly Stretch[], clusterBytes: number, count: number): number {
  let left = count;
  let last = Infinity;
  for (const { offsetBytes, lengthBytes, zero, dirty } of stretches.toReversed()) {
    if (zero || dirty) continue;
    const first = Math.floor(offsetBytes / clusterBytes);
    const end = Math.min(Math.ceil((offsetBytes + lengthBytes) / clusterBytes), last);
    if (end - first >= left) return (end - left) * clusterBytes;
    left -= end - first;
    last = first;
  }
  return 0;
}

/** With marks that count for all of the units in which they are. */
function widened(dirty: readonly DirtyExtent[], unitBytes: number, sizeBytes: number): DirtyExtent[] {
  const stretches: { offsetBytes: number; lengthBytes: number; dirty: boolean }[] = [];
  let at = 0;
  const upTo = (endBytes: number, isDirty: boolean): void => {
    if (endBytes <= at) return;
    const last = stretches.at(-1);
    if (last?.dirty === isDirty) last.lengthBytes += endBytes - at;
    else stretches.push({ offsetBytes: at, lengthBytes: endBytes - at, dirty: isDirty });
    at = endBytes;
  };
  for (const { offsetBytes, lengthBytes, dirty: isDirty } of dirty) {
    if (!isDirty) continue;
    upTo(Math.floor(offsetBytes / unitBytes) * unitBytes, false);
    upTo(Math.min(Math.ceil((offsetBytes + lengthBytes) / unitBytes) * unitBytes, sizeBytes), true);
  }
  upTo(sizeBytes, false);
  return stretches;
}

/** Stretches that are of one kind in both. */
function* both(dirty: readonly DirtyExtent[], extents: readonly Extent[]): Generator<Stretch> {
  let index = 0;
  for (const { offsetBytes, lengthBytes, zero } of extents) {
    const endBytes = offsetBytes + lengthBytes;
    for (; index < dirty.length; index += 1) {
      const stretch = dirty[index];
      if (stretch === undefined || stretch.offsetBytes >= endBytes) break;
      const stretchEndBytes = stretch.offsetBytes + stretch.lengthBytes;
      const from = Math.max(offsetBytes, stretch.offsetBytes);
      const to = Math.min(endBytes, stretchEndBytes);
      if (to > from) yield { offsetBytes: from, lengthBytes: to - from, zero, dirty: stretch.dirty };
      // It goes on in the next extent.
      if (stretchEndBytes > endBytes) break;
    }
  }
}

function endOf(stretches: readonly { readonly offsetBytes: number; readonly lengthBytes: number }[]): number {
  const last = stretches.at(-1);
  return last === undefined ? 0 : last.offsetBytes + last.lengthBytes;
}
