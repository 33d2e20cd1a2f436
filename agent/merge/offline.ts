import { fsyncFile } from '../../common/files.ts';
import { rebaseImage, setBackingHeader } from '../../common/qemuImage.ts';
import type { PlannedVolume, SavePlan } from '../snapshot/plan.ts';
import { isSameFile } from '../snapshot/workFiles.ts';
import { headerState, requireComplete } from './completeness.ts';

/**
 * Puts the frozen image back under an image whose merge was not flushed: right at any time before the flush,
 * because the image then shows what it holds itself and the frozen image everywhere else (trap 2). For an
 * image that nobody has open.
 */
export async function putFrozenUnder(volume: PlannedVolume): Promise<void> {
  // Never swapped, or put back: the image would stand on itself.
  if (await isSameFile(volume.file, volume.frozen)) return;
  await setBackingHeader(volume.file, { path: volume.frozen, format: 'qcow2' });
  await fsyncFile(volume.file);
}

/**
 * Finishes the merge of a machine that is off, and makes it durable.
 * @throws QemuImageError, MergeError
 */
export async function mergeOffline(
  plan: SavePlan,
  options: { readonly includeSharedBase: boolean; readonly deadlineMs: number },
): Promise<void> {
  for (const volume of plan.volumes) {
    // Whatever the header says: it was not flushed as far as we know.
    if ((await headerState(volume, { inUse: false, ...options })) === 'merged') await putFrozenUnder(volume);
    const base = options.includeSharedBase ? null : volume.base;
    await rebaseImage(volume.file, base, { deadlineMs: options.deadlineMs });
    await fsyncFile(volume.file);
    await requireComplete(volume, { inUse: false, includeSharedBase: options.includeSharedBase });
  }
}
