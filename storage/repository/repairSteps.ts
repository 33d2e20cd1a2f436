import { type CallOptions, listAll } from '../backends/backend.ts';
import { type ChunkIndex, type Problem, readIndex } from './chunkIndex.ts';
import { ChunkReader } from './chunkReader.ts';
import type { ChunkPlace } from './chunkTable.ts';
import { currentCollection, readMark, readVerdict } from './collectionRecords.ts';
import { quarantine, quarantinedPacks } from './condemned.ts';
import { RepositoryError } from './errors.ts';
import { deleteHost } from './hostRecords.ts';
import { backupIdOf, indexIdOf, numberedName, packIdOf, packName, prefixes } from './names.ts';
import { packBytesMax } from './limits.ts';
import { getObject, readWhole, type RepositoryContext } from './objects.ts';
import { checkWholePack } from './packReader.ts';
import { rebuildIndex } from './rebuild.ts';
import { copyChunks } from './repack.ts';
import type { RepairOptions } from './repair.ts';
import { damageOf, setAside } from './setAside.ts';
import type { PackProblem } from './verifyRepository.ts';

export type RepairAction =
  /** Makes index objects for packs that none names. */
  | 'index'
  /** Nothing in a pack is reused any more; the pack stays in its place for what can be read of it. */
  | 'quarantine'
  /** Copies what can be read of a damaged pack, and stands nowhere else, into new packs. */
  | 'salvage'
  /** Makes the fence of an attempt again that a later one has proved. */
  | 'fence'
  /** Moves a damaged object to `damaged/`. */
  | 'set-aside'
  /** Writes another copy of the configuration. */
  | 'copy'
  /** Has readers find again what is under retention, and was deleted or overwritten. */
  | 'bring-back';

/** One thing that a repair does. */
export interface RepairStep {
  readonly action: RepairAction;
  /** Of the object that it is about. */
  readonly name: string;
  /** What is wrong, for people. */
  readonly reason: string;
}

/**
 * A step that can be done. Doing it twice, or by two at once, does no more than once. It is judged once more before
 * anything goes: resolves with false if there is no need any more.
 */
export interface PlannedStep extends RepairStep {
  readonly act: () => Promise<boolean>;
}

/** What there is to do, and what is left as it is. */
export interface RepairPlan {
  readonly steps: PlannedStep[];
  /** Damage that a repair leaves, each with what to do about it. */
  readonly kept: Problem[];
}

/** Packs: what no index names is named, what is damaged is not reused, and what can be read of it stands elsewhere. */
export async function planPacks(
  context: RepositoryContext,
  index: ChunkIndex,
  damagedPacks: readonly PackProblem[],
  options: RepairOptions,
): Promise<RepairPlan> {
  const plan: RepairPlan = { steps: [], kept: [] };
  await planIndexes(context, plan, options);
  const unreadable = index.problems.flatMap(({ name, reason }) => {
    const id = packIdOf(name);
    return id === null ? [] : [{ id, reason }];
  });
  const suspected = [...damagedPacks, ...unreadable];
  const bad: PackProblem[] = [];
  for (const { id, reason } of suspected) {
    const name = packName(id);
    if ((await context.backend.size(name, options)) === null)
      plan.kept.push({ name, reason: `${reason}; the next collection takes it out of the indexes` });
    else if ((await packDamage(context, id, options)) !== null) bad.push({ id, reason });
  }
  const inQuarantine = await quarantinedPacks(context, options);
  const badIds = new Set([...inQuarantine, ...bad.map(({ id }) => id.toString('hex'))]);
  for (const { id, reason } of bad) {
    const name = packName(id);
    const why = { reason, at: options.at };
    if (!inQuarantine.has(id.toString('hex')))
      plan.steps.push({
        action: 'quarantine',
        name,
        reason,
        act: async () => {
          await quarantine(context, id, why);
          return true;
        },
      });
    const places = await salvageable(context, index, id, badIds, options);
    if (places.length > 0)
      plan.steps.push({
        action: 'salvage',
        name,
        reason: `${places.length} of its chunks can be read, and stand nowhere else`,
        act: async () => {
          await copyChunks(context, index, places, options);
          return true;
        },
      });
  }
  return plan;
}

/** In this order: what a damaged index said is said again before it goes. */
async function planIndexes(
  context: RepositoryContext,
  plan: RepairPlan,
  options: RepairOptions,
): Promise<void> {
  const { packsAdded, problems } = await rebuildIndex(context, { ...options, dryRun: true });
  if (packsAdded > 0)
    plan.steps.push({
      action: 'index',
      name: prefixes.indexes,
      reason: `no index names ${packsAdded} packs`,
      act: async () => (await rebuildIndex(context, { ...options, dryRun: false })).packsAdded > 0,
    });
  for (const { name } of problems) {
    const id = indexIdOf(name);
    if (id === null) continue;
    const judge = async (): Promise<string | null> => damageOf(async () => readIndex(context, id, options));
    const reason = await judge();
    if (reason !== null)
      plan.steps.push({
        action: 'set-aside',
        name,
        reason,
        // Indexes are believed in nothing: whoever misses it reads the packs.
        act: async () =>
          setAside(context, name, { ...options, judge, remove: () => context.backend.delete(name, options) }),
      });
  }
}

/** What is damaged about a pack, all of whose bytes are read for it. */
async function packDamage(
  context: RepositoryContext,
  id: Buffer,
  options: CallOptions,
): Promise<string | null> {
  return damageOf(async () => {
    const bytes = await readWhole(context, packName(id), packBytesMax, options);
    if (bytes !== null) await checkWholePack(bytes, id, context.namer, context);
  });
}

/** Chunks of a damaged pack that can be read, and that can be read in no other pack that is not known to be bad. */
async function salvageable(
  context: RepositoryContext,
  index: ChunkIndex,
  id: Buffer,
  badIds: ReadonlySet<string>,
  options: CallOptions,
): Promise<readonly ChunkPlace[]> {
  const number = index.packs.findIndex((pack) => pack.id.equals(id));
  if (number < 0) return [];
  const reader = new ChunkReader(context, index);
  const isBad = (pack: number): boolean => badIds.has(index.pack(pack).id.toString('hex'));
  const found: ChunkPlace[] = [];
  for (const place of index.placesOf(number)) {
    if (!(await isReadable(reader, place, options))) continue;
    const others = [...index.find(place.entry.id)].filter(({ pack }) => !isBad(pack));
    let standsElsewhere = false;
    for (const other of others) standsElsewhere ||= await isReadable(reader, other, options);
    if (!standsElsewhere) found.push(place);
  }
  return found;
}

async function isReadable(reader: ChunkReader, place: ChunkPlace, options: CallOptions): Promise<boolean> {
  try {
    await reader.readPlace(place, place.entry.domain, options);
    return true;
  } catch (error) {
    // Also REPOSITORY_TOO_NEW: in a pack that is damaged that is damage, too.
    if (!(error instanceof RepositoryError)) throw error;
    return false;
  }
}

/** Backups of hosts, to which nothing else refers. */
export async function planHosts(context: RepositoryContext, options: RepairOptions): Promise<RepairPlan> {
  const plan: RepairPlan = { steps: [], kept: [] };
  for (const { name } of await listAll(context.backend, prefixes.hosts, options)) {
    const id = backupIdOf(name, prefixes.hosts);
    if (id === null) continue;
    const judge = async (): Promise<string | null> =>
      damageOf(async () => getObject(context, name, ['host'], options));
    const reason = await judge();
    if (reason === null) continue;
    plan.steps.push({
      action: 'set-aside',
      name,
      reason,
      act: async () =>
        setAside(context, name, { ...options, judge, remove: () => deleteHost(context, id, options) }),
    });
  }
  return plan;
}

/** What a collection has left. A mark ends by itself; for a verdict somebody must vouch that nobody follows it. */
export async function planCollection(
  context: RepositoryContext,
  options: RepairOptions,
): Promise<RepairPlan> {
  const plan: RepairPlan = { steps: [], kept: [] };
  const number = await currentCollection(context, options);
  const mark = await damageOf(async () => readMark(context, number, options));
  if (mark !== null)
    plan.kept.push({
      name: numberedName('marks', number),
      reason: `${mark}; no backup begins until stillpoint storage gc has ended this collection`,
    });
  const judge = async (): Promise<string | null> =>
    damageOf(async () => readVerdict(context, number, options));
  const verdict = await judge();
  if (verdict === null) return plan;
  const name = numberedName('verdicts', number);
  if (options.isAlone)
    plan.steps.push({
      action: 'set-aside',
      name,
      reason: verdict,
      act: async () =>
        setAside(context, name, { ...options, judge, remove: () => context.backend.delete(name, options) }),
    });
  else
    plan.kept.push({
      name,
      reason: `${verdict}; collections stay stopped. While no host collects: storage check ${context.storage} --repair --apply --alone`,
    });
  return plan;
}
