import { type ImageExtent, readImageInfo, readImageMap } from '../../common/qemuImage.ts';
import type { PlannedVolume } from '../snapshot/plan.ts';
import { MergeError } from './errors.ts';

/** What the header of a volume's image says about the merge. */
export type HeaderState =
  /** Stands on the frozen image. */
  | 'on-frozen'
  /** Stands on what the image stood on before the backup. */
  | 'merged'
  | 'other';

/** Reads the header of a volume's image and tells how far the merge is. */
export async function headerState(
  volume: PlannedVolume,
  options: { readonly inUse: boolean; readonly includeSharedBase: boolean },
): Promise<HeaderState> {
  const { backing } = await readImageInfo(volume.file, 'qcow2', { inUse: options.inUse });
  if (backing?.path === volume.frozen) return 'on-frozen';
  const base = options.includeSharedBase ? null : volume.base;
  return (backing?.path ?? null) === (base?.path ?? null) ? 'merged' : 'other';
}

/**
 * Proves that an image holds every byte that its frozen image holds: what the frozen image has allocated, the
 * image must have allocated itself. An unflushed merge fails this, although its header looks healthy (trap 2).
 * @throws MergeError MERGE_INCOMPLETE
 */
export async function requireComplete(
  volume: PlannedVolume,
  options: { readonly inUse: boolean; readonly includeSharedBase: boolean },
): Promise<void> {
  const needed = (await readImageMap(volume.frozen, 'qcow2', { inUse: options.inUse })).filter(
    // Over a base, zeros of the frozen image hide what the base holds: they count as content.
    (extent) =>
      (extent.data || (volume.base !== null && extent.present)) &&
      (options.includeSharedBase || extent.depth === 0),
  );
  const held = (await readImageMap(volume.file, 'qcow2', { inUse: options.inUse })).filter(
    (extent) => extent.present && extent.depth === 0,
  );
  const gap = firstGap(needed, held);
  if (gap === undefined) return;
  throw new MergeError(
    'MERGE_INCOMPLETE',
    `${volume.file} does not hold what ${volume.frozen} holds at byte ${gap}`,
    {
      hint: `do not start the machine; with it off: qemu-img rebase -u -f qcow2 -F qcow2 -b ${volume.frozen} ${volume.file}`,
    },
  );
}

type Stretch = Pick<ImageExtent, 'start' | 'length'>;

/**
 * First byte of `needed` that no extent of `held` covers. Both in ascending order, as `qemu-img map` prints
 * them; one pass over both, however many extents there are.
 */
export function firstGap(needed: readonly Stretch[], held: readonly Stretch[]): number | undefined {
  let index = 0;
  for (const extent of needed) {
    let position = extent.start;
    const end = extent.start + extent.length;
    while (position < end) {
      let candidate = held[index];
      while (candidate !== undefined && candidate.start + candidate.length <= position) {
        index += 1;
        candidate = held[index];
      }
      if (candidate === undefined || candidate.start > position) return position;
      position = candidate.start + candidate.length;
    }
  }
  return undefined;
}
