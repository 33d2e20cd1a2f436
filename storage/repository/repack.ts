import type { CallOptions } from '../backends/backend.ts';
import { StorageError } from '../errors.ts';
import type { ChunkIndex } from './chunkIndex.ts';
import { ChunkReader } from './chunkReader.ts';
import type { ChunkPlace } from './chunkTable.ts';
import { damaged } from './errors.ts';
import { encodeIndex, type IndexedPack, indexBytesTarget, indexedBytes } from './indexObject.ts';
import type { LiveChunks } from './liveChunks.ts';
import { packName } from './names.ts';
import { createOnce, putIndex, type RepositoryContext } from './objects.ts';
import { PackMemory } from './packBody.ts';
import { type PackKind, packKindOf } from './packFormat.ts';
import { PackWriter } from './packWriter.ts';

export interface RepackOptions extends CallOptions {
  /** Of the body of a new pack, at which it is closed. */
  readonly packSizeBytes: number;
}

/**
 * Copies what is needed of some packs into new ones, so that the old ones can be condemned. Every chunk is compared
 * on its way, and sealed anew: a pack's keys are its own.
 *
 * Returns those of the packs (ids in hex) of which everything is copied: in a store without space only some, or none.
 * Rejects with REPOSITORY_DAMAGED for a chunk that cannot be read.
 */
export async function repack(
  context: RepositoryContext,
  live: LiveChunks,
  sources: ReadonlySet<string>,
  options: RepackOptions,
): Promise<ReadonlySet<string>> {
  const copier = new Copier(context, options);
  try {
    await copier.copy(live.index, () => homesIn(live, sources));
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'STORAGE_FULL') throw error;
    // Packs without anything that is needed can go all the same, and make room for the next collection.
  }
  return copier.done;
}

/**
 * Copies chunks into new packs that are stored and indexed when this resolves. Every chunk is compared on its way.
 *
 * Rejects with REPOSITORY_DAMAGED for a chunk that cannot be read, STORAGE_FULL.
 */
export async function copyChunks(
  context: RepositoryContext,
  index: ChunkIndex,
  places: readonly ChunkPlace[],
  options: RepackOptions,
): Promise<void> {
  const sources = places.map((place) => ({ place, source: index.pack(place.pack).id.toString('hex') }));
  await new Copier(context, options).copy(index, () => sources);
}

interface SourcedPlace {
  readonly place: ChunkPlace;
  readonly source: string;
}

/** New packs, and which of the old ones they replace. */
class Copier {
  /** Sources of which everything stands in new packs that are stored and indexed. */
  readonly done = new Set<string>();
  readonly #context: RepositoryContext;
  readonly #options: RepackOptions;
  readonly #writers = new Map<PackKind, OpenPack>();
  readonly #memory: PackMemory;
  readonly #stored: StoredPack[] = [];
  /** Chunks of each source that are still only there. */
  readonly #missing = new Map<string, number>();

  constructor(context: RepositoryContext, options: RepackOptions) {
    this.#context = context;
    this.#options = options;
    this.#memory = PackMemory.forPacks(options.packSizeBytes);
  }

  /** @param places gives them anew each time that it is called: there may be too many to keep */
  async copy(index: ChunkIndex, places: () => Iterable<SourcedPlace>): Promise<void> {
    for (const { source } of places()) increase(this.#missing, source);
    const reader = new ChunkReader(this.#context, index);
    for (const { place, source } of places()) {
      const content = await reader.readPlace(place, place.entry.domain, this.#options);
      await this.#add(place, source, content);
    }
    for (const kind of this.#writers.keys()) await this.#close(kind);
    await this.#publish();
  }

  async #add({ entry }: ChunkPlace, source: string, content: Buffer): Promise<void> {
    const kind = packKindOf(entry.domain.type);
    const { repositoryId, keys, compressionLevel: level } = this.#context;
    const open = this.#writers.get(kind) ?? {
      writer: new PackWriter({ kind, repositoryId, keys, level, memory: this.#memory }),
      chunksFrom: new Map<string, number>(),
    };
    this.#writers.set(kind, open);
    open.writer.add(entry.id, entry.domain, content);
    increase(open.chunksFrom, source);
    if (open.writer.isFull || open.writer.bodyBytes >= this.#options.packSizeBytes) await this.#close(kind);
  }

  async #close(kind: PackKind): Promise<void> {
    const open = this.#writers.get(kind);
    if (open === undefined) return;
    const { id, parts, sizeBytes, entries } = open.writer.finish();
    const name = packName(id);
    if ((await createOnce(this.#context.backend, name, parts, this.#options)) === 'taken')
      throw damaged(name, 'its place is taken by something else');
    // Only then: what failed may still be reading it.
    open.writer.giveBack();
    this.#writers.delete(kind);
    this.#stored.push({ pack: { id, kind, sizeBytes, entries }, chunksFrom: open.chunksFrom });
    const bytes = this.#stored.reduce((total, { pack }) => total + indexedBytes(pack), 0);
    if (bytes >= indexBytesTarget) await this.#publish();
  }

  /** Makes new packs known, and only then lets go of those that they replace. */
  async #publish(): Promise<void> {
    if (this.#stored.length === 0) return;
    const packs = this.#stored.map(({ pack }) => pack);
    await putIndex(this.#context, encodeIndex({ supersedes: [], packs }), this.#options);
    for (const { chunksFrom } of this.#stored.splice(0))
      for (const [source, count] of chunksFrom) {
        const missing = (this.#missing.get(source) ?? 0) - count;
        this.#missing.set(source, missing);
        if (missing === 0) this.done.add(source);
      }
  }
}

interface OpenPack {
  readonly writer: PackWriter;
  /** How many of its chunks were copied from which pack. */
  readonly chunksFrom: Map<string, number>;
}

interface StoredPack {
  readonly pack: IndexedPack;
  readonly chunksFrom: ReadonlyMap<string, number>;
}

/** Every place in some packs that is needed. */
function* homesIn(live: LiveChunks, sources: ReadonlySet<string>): Generator<SourcedPlace> {
  const names = live.index.packs.map(({ id }) => id.toString('hex'));
  for (const place of live.index.places()) {
    const source = names[place.pack];
    if (source !== undefined && sources.has(source) && live.isHome(place)) yield { place, source };
  }
}

function increase(counts: Map<string, number>, key: string): void {
  counts.set(key, (counts.get(key) ?? 0) + 1);
}
