import { type CallOptions, listAll } from '../backends/backend.ts';
import { StorageError } from '../errors.ts';
import { currentCollection, readMark } from './collectionRecords.ts';
import { prefixes, quarantinedPackOf, quarantineName } from './names.ts';
import { putObject, type RepositoryContext } from './objects.ts';

/**
 * Ids (hex) of packs that a collection has condemned and not yet deleted: nothing in them may be reused
 * (invariant 5). Only the collection that is under way has any: the next one begins when all of them are gone.
 */
export async function condemnedPacks(
  context: RepositoryContext,
  options: CallOptions = {},
): Promise<ReadonlySet<string>> {
  const mark = await readMark(context, await currentCollection(context, options), options);
  // A mark that is made from now on is made by a collection that sees our session, and waits for it.
  return new Set(mark?.packs);
}

/** Ids (hex) of packs that were found damaged. */
export async function quarantinedPacks(
  context: RepositoryContext,
  options: CallOptions = {},
): Promise<ReadonlySet<string>> {
  const found = new Set<string>();
  for (const { name } of await listAll(context.backend, prefixes.quarantine, options)) {
    const id = quarantinedPackOf(name);
    if (id !== null) found.add(id.toString('hex'));
  }
  return found;
}

/** Has nothing in a pack be reused any more, so that the next backup stores it again. The pack stays where it is. */
export async function quarantine(
  context: RepositoryContext,
  pack: Buffer,
  why: { readonly reason: string; readonly at: string },
): Promise<void> {
  const record = { formatVersion: 1, packId: pack.toString('hex'), ...why };
  // Somebody may have found it before, with other words.
  await putObject(context, 'quarantine', quarantineName(pack), Buffer.from(JSON.stringify(record)));
}

/** The same for what a check finds, which goes on where nothing can be written: then no backup can reuse it, either. */
export async function quarantineFound(
  context: RepositoryContext,
  { id, reason }: { readonly id: Buffer; readonly reason: string },
): Promise<void> {
  try {
    await quarantine(context, id, { reason, at: new Date().toISOString() });
  } catch (error) {
    // The damage itself is in the report; the next check tries again.
    if (!(error instanceof StorageError)) throw error;
  }
}
