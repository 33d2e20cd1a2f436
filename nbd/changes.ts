import type { Extent } from '../common/volumeSource.ts';
import type { DirtyExtent } from './volume.ts';

/**
 * Every stretch in which a volume may differ from what it was when its bitmap was started: what the bitmap names,
 * and all that is zero. QEMU marks what the guest zeroes or discards, but not what a shrink of the image takes away
 * and a later growth gives back as zeros.
 *
 * @param dirty from 0 to the size, without gaps
 * @param extents the same
 * @throws Error when the two are not of one size
 */
export function changesOf(dirty: readonly DirtyExtent[], extents: readonly Extent[]): readonly Extent[] {
  if (endOf(dirty) !== endOf(extents))
    throw new Error(`the bitmap ends at ${endOf(dirty)}, the volume at ${endOf(extents)}`);
  const changes: Extent[] = [];
  let index = 0;
  for (const { offsetBytes, lengthBytes, zero } of extents) {
    if (zero) {
      changes.push({ offsetBytes, lengthBytes, zero });
      continue;
    }
    const endBytes = offsetBytes + lengthBytes;
    for (; index < dirty.length; index += 1) {
      const stretch = dirty[index];
      if (stretch === undefined || stretch.offsetBytes >= endBytes) break;
      const stretchEndBytes = stretch.offsetBytes + stretch.lengthBytes;
      const from = Math.max(offsetBytes, stretch.offsetBytes);
      const to = Math.min(endBytes, stretchEndBytes);
      if (stretch.dirty && to > from)
        changes.push({ offsetBytes: from, lengthBytes: to - from, zero: false });
      // It goes on in the next extent.
      if (stretchEndBytes > endBytes) break;
    }
  }
  return changes;
}

function endOf(stretches: readonly { readonly offsetBytes: number; readonly lengthBytes: number }[]): number {
  const last = stretches.at(-1);
  return last === undefined ? 0 : last.offsetBytes + last.lengthBytes;
}
