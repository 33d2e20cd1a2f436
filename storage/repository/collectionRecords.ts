import * as z from 'zod';
import type { CallOptions } from '../backends/backend.ts';
import { parseDocument } from './document.ts';
import { damaged } from './errors.ts';
import { objectBytesMax } from './limits.ts';
import { numberedName } from './names.ts';
import { getObject, putObject, type RepositoryContext } from './objects.ts';

/*
 * What collections leave in the store, each under the number of its collection (docs/FORMAT.md, "Collection"). All
 * are created exclusively, so several collectors at once, or one after the other, agree on them.
 */

const recordSchema = z.object({
  formatVersion: z.literal(1),
  collection: z.number().int().positive(),
  /** Ids of packs. */
  packs: z.array(z.string().regex(/^[0-9a-f]{64}$/)),
});

/** Packs that a collection condemns, or that it deletes. */
export type CollectionRecord = Pick<z.infer<typeof recordSchema>, 'packs'>;

/** Who collects, for people. */
export interface Collector {
  readonly host: string;
  readonly at: string;
}

/**
 * The number of the collection that is under way or comes next: the first one that has not ended. A collection begins
 * only when the one before it has ended, so the number is found by asking for names, in few steps and without a
 * listing, which may be old.
 */
export async function currentCollection(
  context: RepositoryContext,
  options: CallOptions = {},
): Promise<number> {
  let ended = 0;
  let step = 1;
  while (await hasEnded(context, ended + step, options)) {
    ended += step;
    step *= 2;
  }
  while (step > 1) {
    step /= 2;
    if (await hasEnded(context, ended + step, options)) ended += step;
  }
  return ended + 1;
}

export async function hasEnded(
  context: RepositoryContext,
  collection: number,
  options: CallOptions = {},
): Promise<boolean> {
  return (await context.backend.size(numberedName('swept', collection), options)) !== null;
}

/** What a collection condemns; `null` before there is a mark. Rejects with REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW. */
export async function readMark(
  context: RepositoryContext,
  collection: number,
  options: CallOptions = {},
): Promise<CollectionRecord | null> {
  return readRecord(context, 'mark', collection, options);
}

/** What a collection deletes; `null` before that is decided. Rejects with REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW. */
export async function readVerdict(
  context: RepositoryContext,
  collection: number,
  options: CallOptions = {},
): Promise<CollectionRecord | null> {
  return readRecord(context, 'verdict', collection, options);
}

/** Creates a mark, or a verdict. One that is there already, by whomever, stands. */
export async function putRecord(
  context: RepositoryContext,
  type: 'mark' | 'verdict',
  record: CollectionRecord & Collector & { readonly collection: number },
  options: CallOptions = {},
): Promise<void> {
  const content = Buffer.from(JSON.stringify({ formatVersion: 1, ...record }));
  await putObject(context, type, nameOf(type, record.collection), content, options);
}

/** Ends a collection: nothing that it condemned, and that is still there, is condemned any more. */
export async function putSwept(
  context: RepositoryContext,
  collection: number,
  collector: Collector,
  options: CallOptions = {},
): Promise<void> {
  const content = Buffer.from(JSON.stringify({ formatVersion: 1, collection, ...collector }));
  await putObject(context, 'swept', numberedName('swept', collection), content, options);
}

async function readRecord(
  context: RepositoryContext,
  type: 'mark' | 'verdict',
  collection: number,
  options: CallOptions,
): Promise<CollectionRecord | null> {
  const name = nameOf(type, collection);
  const object = await getObject(context, name, [type], options);
  if (object === null) return null;
  const rules = { schema: recordSchema, version: 1, bytesMax: objectBytesMax };
  const record = parseDocument(object.content, name, rules);
  if (record.collection !== collection) throw damaged(name, 'it is that of another collection');
  return record;
}

function nameOf(type: 'mark' | 'verdict', collection: number): string {
  return numberedName(type === 'mark' ? 'marks' : 'verdicts', collection);
}
