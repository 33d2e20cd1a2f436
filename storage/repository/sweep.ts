import { type CallOptions, listAll } from '../backends/backend.ts';
import { StorageError } from '../errors.ts';
import { type Collector, putSwept } from './collectionRecords.ts';
import { replaceIndexes } from './indexReplacement.ts';
import { presentPacks } from './liveChunks.ts';
import { deleteUnlessLocked } from './lockedStore.ts';
import { attemptOf, backupIdOf, numberOf, packName, prefixes, quarantinedPackOf } from './names.ts';
import type { RepositoryContext } from './objects.ts';
import { openSessions } from './openSessions.ts';

export interface SweepReport {
  readonly packsDeleted: number;
  readonly freedBytes: number;
  /** Ends of the retentions of packs that stay for now. */
  readonly lockedUntil: readonly Date[];
}

/**
 * Deletes packs on which a verdict was given, first from the indexes, and ends the collection. Repeating it, also by
 * several at once, does the same again: no pack ever comes back under its name. Packs that were locked since (by a backup
 * that reused them and came to nothing) stay as they are, in their indexes too, for a later collection.
 *
 * @param convicted ids (hex)
 */
export async function sweep(
  context: RepositoryContext,
  collection: number,
  convicted: ReadonlySet<string>,
  options: CallOptions & { readonly collector: Collector },
): Promise<SweepReport> {
  const locked = await lockedPacks(context, convicted, options);
  const leaving = new Set([...convicted].filter((pack) => !locked.has(pack)));
  const indexesAreDone = await tryWithoutSpace(async () => replaceIndexes(context, leaving, options));
  const present = await presentPacks(context, options);
  const doomed: string[] = [];
  for (const pack of leaving)
    if (present.has(pack) && (await deleteUnlessLocked(context.backend, nameOf(pack), options)))
      doomed.push(pack);
  if (!indexesAreDone) await replaceIndexes(context, leaving, options);
  await removeRemains(context, options);
  await putSwept(context, collection, options.collector, options);
  await removeRecords(context, collection, options);
  const freedBytes = doomed.reduce((total, pack) => total + (present.get(pack) ?? 0), 0);
  return { packsDeleted: doomed.length, freedBytes, lockedUntil: [...locked.values()] };
}

/** Which of some packs (ids in hex) cannot be deleted now, each with the end of its retention. */
export async function lockedPacks(
  { lock }: RepositoryContext,
  packs: Iterable<string>,
  options: CallOptions,
): Promise<ReadonlyMap<string, Date>> {
  if (lock === null) return new Map();
  const ids = new Map([...packs].map((pack) => [nameOf(pack), pack]));
  const locked = await lock.locked(ids.keys(), options);
  return new Map([...locked].map(([name, until]) => [ids.get(name) ?? name, until]));
}

function nameOf(pack: string): string {
  return packName(Buffer.from(pack, 'hex'));
}

/**
 * In a store that is full the packs go first: an index that names what is gone costs a look, and there is no other
 * way to make the room for a better one.
 */
async function tryWithoutSpace(work: () => Promise<void>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof StorageError && error.code === 'STORAGE_FULL') return false;
    throw error;
  }
}

/** Removes what tells of packs and backups that are gone for good. */
async function removeRemains(context: RepositoryContext, options: CallOptions): Promise<void> {
  const { backend } = context;
  for (const { name } of await listAll(backend, prefixes.quarantine, options)) {
    const pack = quarantinedPackOf(name);
    if (pack !== null && (await backend.size(packName(pack), options)) === null)
      await backend.delete(name, options);
  }
  // Sessions whose backups are decided.
  await openSessions(context, options);
  // A deletion that ended half way leaves a manifest, and so does a writer that comes back late.
  const manifests = await listAll(backend, prefixes.manifests, options);
  const deletions = await listAll(backend, prefixes.deletions, options);
  const deleted = new Set(deletions.map(({ name }) => backupIdOf(name, prefixes.deletions)));
  for (const { name } of manifests) {
    const attempt = attemptOf(name, prefixes.manifests);
    if (attempt !== null && deleted.has(attempt.backupId)) await deleteUnlessLocked(backend, name, options);
  }
}

/** Marks and verdicts of collections that have ended; only that they have must be known for ever. */
async function removeRecords(
  context: RepositoryContext,
  collection: number,
  options: CallOptions,
): Promise<void> {
  for (const prefix of [prefixes.marks, prefixes.verdicts])
    for (const { name } of await listAll(context.backend, prefix, options)) {
      const number = numberOf(name, prefix);
      if (number !== null && number <= collection) await context.backend.delete(name, options);
    }
}
