import type { CallOptions } from '../backends/backend.ts';
import { ChunkIndex, type Problem } from './chunkIndex.ts';
import { encodeIndex, indexGroups } from './indexObject.ts';
import { indexPacksMax } from './limits.ts';
import { indexIdOf } from './names.ts';
import { putIndex, type RepositoryContext } from './objects.ts';

export interface RebuildReport {
  /** Packs that no index named, and that are named now. */
  readonly packsAdded: number;
  /** Index objects and packs that are damaged; nothing of them is deleted. */
  readonly problems: readonly Problem[];
}

/**
 * Makes index objects for all packs that no index names: after the loss of all of them, for all packs (invariant 8).
 * Published objects are not touched. A dry run only says what it would do (invariant 13).
 */
export async function rebuildIndex(
  context: RepositoryContext,
  options: CallOptions & { readonly dryRun: boolean },
): Promise<RebuildReport> {
  if (!options.dryRun) context.keys.requireReading(context.storage);
  const index = await ChunkIndex.load(context, options);
  const packs = await index.readUnknownPacks(options);
  if (!options.dryRun)
    for (const group of indexGroups(packs))
      await putIndex(context, encodeIndex({ supersedes: damagedIndexes(index), packs: group }), options);
  return { packsAdded: packs.length, problems: index.problems };
}

/** A damaged index is replaced, so that nobody stumbles over it again. */
function damagedIndexes(index: ChunkIndex): readonly Buffer[] {
  const ids = index.problems.map(({ name }) => indexIdOf(name)).filter((id) => id !== null);
  return ids.slice(0, indexPacksMax);
}
