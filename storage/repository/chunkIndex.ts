import { hash } from 'node:crypto';
import { messageOf } from '../../common/errors.ts';
import { type CallOptions, listAll } from '../backends/backend.ts';
import { type ChunkPlace, ChunkTable } from './chunkTable.ts';
import { damaged, RepositoryError } from './errors.ts';
import { decodeIndex, type IndexedPack, type IndexObject } from './indexObject.ts';
import { indexIdOf, indexName, packIdOf, packName, prefixes } from './names.ts';
import { packBytesMax } from './limits.ts';
import { indexBoundName, readWhole, type RepositoryContext, sealedBytesMax } from './objects.ts';
import type { PackKind } from './packFormat.ts';
import { readPackContents } from './packReader.ts';
import { openObject } from './sealedObject.ts';

/** A pack that is known, under a number of this process. */
export interface KnownPack {
  readonly id: Buffer;
  readonly kind: PackKind;
  readonly sizeBytes: number;
}

/** Something in the store that cannot be used, and why. */
export interface Problem {
  readonly name: string;
  readonly reason: string;
}

/**
 * Which chunk is in which pack, as the index objects say: a cache, from which nothing may be concluded but where to
 * look (invariant 8). What it does not know is looked for in the packs themselves.
 */
export class ChunkIndex {
  readonly #context: RepositoryContext;
  readonly #table = new ChunkTable();
  readonly #packs: KnownPack[] = [];
  readonly #numbers = new Map<string, number>();
  /** Index objects that were read; they never change. */
  readonly #read = new Set<string>();
  readonly #counting = new Set<string>();
  /** Index objects and packs that could not be used. */
  problems: readonly Problem[] = [];

  private constructor(context: RepositoryContext) {
    this.#context = context;
  }

  /** Reads all index objects. */
  static async load(context: RepositoryContext, options: CallOptions = {}): Promise<ChunkIndex> {
    const index = new ChunkIndex(context);
    await index.#load(options);
    return index;
  }

  get chunkCount(): number {
    return this.#table.count;
  }

  get packs(): readonly KnownPack[] {
    return this.#packs;
  }

  /** Names of the index objects that count: those that were read and that no other one replaces. */
  get objectNames(): ReadonlySet<string> {
    return this.#counting;
  }

  pack(number: number): KnownPack {
    const pack = this.#packs[number];
    if (pack === undefined) throw new Error(`there is no pack ${number}`);
    return pack;
  }

  find(id: Buffer): Iterable<ChunkPlace> {
    return this.#table.find(id);
  }

  /** Every chunk of one pack. */
  placesOf(pack: number): Iterable<ChunkPlace> {
    return this.#table.ofPack(pack);
  }

  /** Every place of every chunk, in the order of their numbers. */
  places(): Iterable<ChunkPlace> {
    return this.#table.all();
  }

  knows(packId: Buffer): boolean {
    return this.#numbers.has(packId.toString('hex'));
  }

  addPack(pack: IndexedPack): void {
    if (this.knows(pack.id)) return;
    const number = this.#packs.length;
    this.#packs.push({ id: pack.id, kind: pack.kind, sizeBytes: pack.sizeBytes });
    this.#numbers.set(pack.id.toString('hex'), number);
    for (const entry of pack.entries) this.#table.add(number, entry);
  }

  /** Reads the index objects that others have written since. Returns whether they name packs that were not known. */
  async refresh(options: CallOptions = {}): Promise<boolean> {
    const before = this.#packs.length;
    await this.#load(options);
    return this.#packs.length > before;
  }

  /** Reads the tables of all packs that no index object names. Returns them. */
  async readUnknownPacks(options: CallOptions = {}): Promise<readonly IndexedPack[]> {
    const found: IndexedPack[] = [];
    for (const { name, sizeBytes } of await listAll(this.#context.backend, prefixes.packs, options)) {
      const id = packIdOf(name);
      if (id === null || this.knows(id)) continue;
      const pack = await this.#attempt(name, async () => readPack(this.#context, id, sizeBytes, options));
      if (pack === null) continue;
      this.addPack(pack);
      found.push(pack);
    }
    return found;
  }

  async #load(options: CallOptions): Promise<void> {
    const objects = new Map<string, IndexObject>();
    for (const { name } of await listAll(this.#context.backend, prefixes.indexes, options)) {
      const id = indexIdOf(name);
      if (id === null || this.#read.has(name)) continue;
      const object = await this.#attempt(name, async () => readIndex(this.#context, id, options));
      if (object === null) continue;
      this.#read.add(name);
      objects.set(id.toString('hex'), object);
    }
    // What was replaced replaces others all the same.
    const replaced = new Set(
      [...objects.values()].flatMap(({ supersedes }) =>
        supersedes.map((id) => `${prefixes.indexes}${id.toString('hex')}`),
      ),
    );
    for (const name of replaced) this.#counting.delete(name);
    const valid = [...objects].filter(([id]) => !replaced.has(`${prefixes.indexes}${id}`));
    for (const [id] of valid) this.#counting.add(`${prefixes.indexes}${id}`);
    const packs = valid.flatMap(([, object]) => object.packs).filter(({ id }) => !this.knows(id));
    this.#table.reserve(packs.reduce((sum, { entries }) => sum + entries.length, 0));
    for (const pack of packs) this.addPack(pack);
    this.problems = this.problems.filter(({ name }) => !replaced.has(name));
  }

  /** What is damaged is noted and left out: for a cache, that is no failure. A store that does not answer is. */
  async #attempt<T>(name: string, read: () => Promise<T | null>): Promise<T | null> {
    try {
      return await read();
    } catch (error) {
      if (!(error instanceof RepositoryError) || error.code !== 'REPOSITORY_DAMAGED') throw error;
      const others = this.problems.filter((problem) => problem.name !== name);
      this.problems = [...others, { name, reason: messageOf(error) }];
      return null;
    }
  }
}

/** Reads an index object; `null` for one that a listing showed and that is gone. Rejects with REPOSITORY_DAMAGED. */
export async function readIndex(
  context: RepositoryContext,
  id: Buffer,
  options: CallOptions,
): Promise<IndexObject | null> {
  const name = indexName(id);
  const bytes = await readWhole(context, name, sealedBytesMax, options);
  if (bytes === null) return null;
  if (!hash('sha256', bytes, 'buffer').equals(id)) throw damaged(name, 'its bytes are not those of its name');
  return decodeIndex(openObject(bytes, indexBoundName, ['index'], context).content, name);
}

/** Reads the table of a pack; `null` for one that is gone. Rejects with REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW. */
async function readPack(
  context: RepositoryContext,
  id: Buffer,
  sizeBytes: number,
  options: CallOptions,
): Promise<IndexedPack | null> {
  const name = packName(id);
  const seen = { gone: false };
  const read = async (offsetBytes: number, lengthBytes: number): Promise<Buffer> => {
    const bytes = await context.backend.read(name, { ...options, range: { offsetBytes, lengthBytes } });
    if (bytes === null) seen.gone = true;
    return bytes ?? Buffer.alloc(0);
  };
  try {
    const { kind, entries } = await readPackContents(sizeBytes, read, name, context);
    return { id, kind, sizeBytes, entries };
  } catch (error) {
    if (seen.gone) return null;
    // Of data that somebody else has stored, or this host before it was killed, a writer does not know what it is.
    if (error instanceof RepositoryError && error.code === 'KEY_WRITE_ONLY') return null;
    if (error instanceof RepositoryError && error.code === 'REPOSITORY_TOO_NEW') {
      // What asks for a newer version stands before all that proves the header: its name tells whether that is damage.
      const bytes = await readWhole(context, name, packBytesMax, options);
      if (bytes === null) return null;
      if (!hash('sha256', bytes, 'buffer').equals(id))
        throw damaged(name, 'its bytes are not those of its name', error);
    }
    throw error;
  }
}
