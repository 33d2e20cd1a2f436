import { type CallOptions, listAll } from '../backends/backend.ts';
import { readIndex } from './chunkIndex.ts';
import { RepositoryError } from './errors.ts';
import { encodeIndex, type IndexedPack, indexBytesTarget, indexedBytes } from './indexObject.ts';
import { indexPacksMax } from './limits.ts';
import { presentPacks } from './liveChunks.ts';
import { deleteUnlessLocked } from './lockedStore.ts';
import { indexIdOf, indexName, prefixes } from './names.ts';
import { putIndex, type RepositoryContext } from './objects.ts';
import { rebuildIndex } from './rebuild.ts';

/** What an index object says, without its entries. */
interface IndexSummary {
  readonly id: Buffer;
  readonly supersedes: readonly string[];
  readonly packs: readonly string[];
}

/** An index object of which only some packs are to be named any more. */
interface Replacement {
  readonly id: Buffer;
  readonly keep: ReadonlySet<string>;
}

/**
 * Has no index object name a pack that goes or is gone, or that another one names: writes new ones with what is left
 * of those that do, then deletes these. Those that are damaged are made again from the packs.
 *
 * @param leaving ids (hex) of packs that are to be deleted
 */
export async function replaceIndexes(
  context: RepositoryContext,
  leaving: ReadonlySet<string>,
  options: CallOptions,
): Promise<void> {
  const { summaries, damaged } = await soundSummaries(context, options);
  // After the indexes: a pack is there before any index names it.
  const present = await presentPacks(context, options);
  const isNamed = (pack: string): boolean => present.has(pack) && !leaving.has(pack);
  const superseded = new Set(summaries.flatMap(({ supersedes }) => supersedes));
  // One that is locked counts no more, either; a later collection takes it away.
  const remove = async (id: Buffer): Promise<boolean> =>
    deleteUnlessLocked(context.backend, indexName(id), options);
  // First those that are damaged: as long as another one replaces them nobody is told of it, and that one may go, too.
  for (const id of [...damaged, ...summaries.map((summary) => summary.id)])
    if (superseded.has(id.toString('hex'))) await remove(id);
  const counting = summaries.filter(({ id }) => !superseded.has(id.toString('hex')));
  const replacements = replacementsOf(counting, isNamed);
  await writeReplacements(context, replacements, options);
  for (const { id } of replacements) await remove(id);
}

/** Index objects as a look at all of them found them. */
interface Summaries {
  readonly summaries: readonly IndexSummary[];
  /** Ids of those that cannot be used. */
  readonly damaged: readonly Buffer[];
}

/** Of every index object, after those that are damaged, and that no other one replaces, were replaced. */
async function soundSummaries(context: RepositoryContext, options: CallOptions): Promise<Summaries> {
  const found = await summarize(context, options);
  if (found.damaged.length === 0) return found;
  // First of all: what is to be written may have been written before, and be the one that is damaged.
  await replaceDamaged(context, options);
  return summarize(context, options);
}

/** What they named is read from the packs. Damaged is what this look finds damaged: a read may be right again. */
async function replaceDamaged(context: RepositoryContext, options: CallOptions): Promise<void> {
  const { problems } = await rebuildIndex(context, { ...options, dryRun: false });
  for (const { name } of problems)
    if (indexIdOf(name) !== null) await deleteUnlessLocked(context.backend, name, options);
}

/** In the order of their names, so that two collectors at once keep the same one of two that say the same. */
function replacementsOf(
  summaries: readonly IndexSummary[],
  isNamed: (packId: string) => boolean,
): readonly Replacement[] {
  const named = new Set<string>();
  const replacements: Replacement[] = [];
  for (const { id, packs } of summaries.toSorted((one, other) => one.id.compare(other.id))) {
    const keep = new Set(packs.filter((pack) => isNamed(pack) && !named.has(pack)));
    for (const pack of keep) named.add(pack);
    if (keep.size < packs.length) replacements.push({ id, keep });
  }
  return replacements;
}

/** An object is superseded by the new one that holds the last of what is left of it. */
async function writeReplacements(
  context: RepositoryContext,
  replacements: readonly Replacement[],
  options: CallOptions,
): Promise<void> {
  let supersedes: Buffer[] = [];
  let packs: IndexedPack[] = [];
  let bytes = 0;
  const write = async (): Promise<void> => {
    if (packs.length > 0) await putIndex(context, encodeIndex({ supersedes, packs }), options);
    supersedes = [];
    packs = [];
    bytes = 0;
  };
  for (const { id, keep } of replacements) {
    const object = keep.size === 0 ? null : await readIndex(context, id, options);
    const left = (object?.packs ?? []).filter((pack) => keep.has(pack.id.toString('hex')));
    for (const pack of left) {
      if (bytes >= indexBytesTarget) await write();
      packs.push(pack);
      bytes += indexedBytes(pack);
    }
    supersedes.push(id);
    if (supersedes.length === indexPacksMax) await write();
  }
  await write();
}

async function summarize(context: RepositoryContext, options: CallOptions): Promise<Summaries> {
  const summaries: IndexSummary[] = [];
  const damaged: Buffer[] = [];
  for (const { name } of await listAll(context.backend, prefixes.indexes, options)) {
    const id = indexIdOf(name);
    if (id === null) continue;
    const summary = await summaryOf(context, id, options);
    if (summary === 'damaged') damaged.push(id);
    else if (summary !== null) summaries.push(summary);
  }
  return { summaries, damaged };
}

/** `null` for one that is gone since it was listed. */
async function summaryOf(
  context: RepositoryContext,
  id: Buffer,
  options: CallOptions,
): Promise<IndexSummary | 'damaged' | null> {
  try {
    const object = await readIndex(context, id, options);
    if (object === null) return null;
    const supersedes = object.supersedes.map((other) => other.toString('hex'));
    return { id, supersedes, packs: object.packs.map((pack) => pack.id.toString('hex')) };
  } catch (error) {
    if (error instanceof RepositoryError && error.code === 'REPOSITORY_DAMAGED') return 'damaged';
    throw error;
  }
}
