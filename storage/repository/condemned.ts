import { z } from 'zod';
import { type CallOptions, listAll } from '../backends/backend.ts';
import { parseDocument } from './document.ts';
import { objectBytesMax } from './limits.ts';
import { numberedName, prefixes, quarantinedPackOf, quarantineName } from './names.ts';
import { getObject, putObject, type RepositoryContext } from './objects.ts';

const packId = z.string().regex(/^[0-9a-f]{64}$/);
const markSchema = z.object({ formatVersion: z.literal(1), epoch: z.number().int(), packs: z.array(packId) });

/** No repository is collected more often. */
const epochsMax = 99_999_999;

/**
 * Ids (hex) of packs that a collection has condemned and not yet deleted: nothing in them may be reused
 * (invariant 5). Epochs are found by asking for the next number: a listing may not show the newest.
 */
export async function condemnedPacks(
  context: RepositoryContext,
  options: CallOptions = {},
): Promise<ReadonlySet<string>> {
  const condemned = new Set<string>();
  for (let epoch = 1; epoch <= epochsMax; epoch++) {
    if ((await context.backend.size(numberedName('epochs', epoch), options)) === null) break;
    if ((await context.backend.size(numberedName('swept', epoch), options)) !== null) continue;
    const name = numberedName('marks', epoch);
    const mark = await getObject(context, name, ['mark'], options);
    // Until there is a mark, the collection sees our session when it makes one.
    if (mark === null) continue;
    const rules = { schema: markSchema, version: 1, bytesMax: objectBytesMax };
    for (const id of parseDocument(mark.content, name, rules).packs) condemned.add(id);
  }
  return condemned;
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
