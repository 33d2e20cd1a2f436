import type { CallOptions } from '../backends/backend.ts';
import type { ChunkDomain } from './chunkId.ts';
import type { ChunkIndex } from './chunkIndex.ts';
import type { ChunkPlace } from './chunkTable.ts';
import type { ChunkWork } from './chunkWorkers.ts';
import { damaged, RepositoryError } from './errors.ts';
import { packName } from './names.ts';
import type { RepositoryContext } from './objects.ts';
import { type PackKeys, packHeaderBytes } from './packFormat.ts';
import { openChunk, packKeysOf } from './packReader.ts';
import { tagBytes } from './seal.ts';

/** Keys of packs that are kept, the least recently used one goes first. */
const packKeysMax = 4096;

/** Blobs that are this near to each other in one pack are read with one call. */
const gapBytesMax = 16 * 1024;
/** Of one such call. */
const rangeBytesMax = 4 * 1024 * 1024;

/** A chunk that is to be read. */
export interface WantedChunk {
  readonly id: Buffer;
  readonly domain: ChunkDomain;
  /** Gets the content, of whose length it must be; in memory that all threads see, other threads fill it. */
  readonly target: Buffer;
}

/** Reads chunks, from any pack that has them. What it returns is what was stored (invariant 9). */
export class ChunkReader {
  readonly #context: RepositoryContext;
  readonly #index: ChunkIndex;
  readonly #work: ChunkWork;
  readonly #keys = new Map<number, PackKeys>();

  constructor(context: RepositoryContext, index: ChunkIndex) {
    this.#context = context;
    this.#index = index;
    this.#work = context.workers.begin();
  }

  /**
   * The content of a chunk. A place that is damaged is read twice, then others are tried: those of index objects that
   * were written since (a collection may have moved the chunk), then packs that no index names.
   *
   * Rejects with CHUNK_MISSING, REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW.
   */
  async read(id: Buffer, domain: ChunkDomain, options: CallOptions = {}): Promise<Buffer> {
    const tried = new Set<number>();
    let failure: RepositoryError | null = null;
    for (;;) {
      const read = await this.#tryPlaces(id, domain, tried, options);
      if (Buffer.isBuffer(read)) return read;
      failure = read ?? failure;
      if (await this.#index.refresh(options)) continue;
      if ((await this.#index.readUnknownPacks(options)).length > 0) continue;
      throw failure ?? missing(id, domain);
    }
  }

  /**
   * Reads several chunks at once: neighbours with one call, and unpacked on other threads. Gives a promise for each, which
   * rejects as `read` does, and with REPOSITORY_DAMAGED for a content of another length than its target.
   */
  readMany(wanted: readonly WantedChunk[], options: CallOptions = {}): readonly Promise<void>[] {
    const fast = new Map<WantedChunk, Promise<boolean>>();
    for (const group of this.#groups(wanted)) {
      const filled = this.#readGroup(group, options);
      // Each of its chunks looks at it by itself.
      filled.catch(() => undefined);
      for (const [place, { chunk }] of group.entries())
        fast.set(
          chunk,
          filled.then((good) => good[place] === true),
        );
    }
    return wanted.map(async (chunk) => {
      if ((await fast.get(chunk)) === true) return;
      // All that can be done for a chunk is done one by one.
      const { id, domain, target } = chunk;
      const content = await this.read(id, domain, options);
      if (content.length !== target.length)
        throw damaged(`chunk ${id.toString('hex')}`, 'it has another length than its place in the stream');
      target.set(content);
    });
  }

  /** Chunks that are to be read with one call each, by the first place at which each of them is. */
  #groups(wanted: readonly WantedChunk[]): readonly (readonly PlacedChunk[])[] {
    const placed = wanted.flatMap((chunk): PlacedChunk[] => {
      const [place] = this.#index.find(chunk.id);
      return place === undefined || !isAsWanted(place, chunk) ? [] : [{ chunk, place }];
    });
    // As many groups as keep all threads busy.
    const chunksMax = Math.max(2, Math.ceil(placed.length / this.#work.width));
    const groups: PlacedChunk[][] = [];
    const inOrder = placed.toSorted(
      ({ place: one }, { place: other }) =>
        one.pack - other.pack || one.entry.offsetBytes - other.entry.offsetBytes,
    );
    for (const next of inOrder) {
      const group = groups.at(-1);
      const [first] = group ?? [];
      const last = group?.at(-1);
      const joins =
        group !== undefined &&
        first !== undefined &&
        last?.place.pack === next.place.pack &&
        group.length < chunksMax &&
        next.place.entry.offsetBytes - endOf(last) <= gapBytesMax &&
        endOf(next) - first.place.entry.offsetBytes <= rangeBytesMax;
      if (joins) group.push(next);
      else groups.push([next]);
    }
    return groups;
  }

  /** Reads chunks of one pack into their targets. Returns of which that is done; the others are damaged there. */
  async #readGroup(group: readonly PlacedChunk[], options: CallOptions): Promise<readonly boolean[]> {
    const [first] = group;
    const last = group.at(-1);
    if (first === undefined || last === undefined) return [];
    const name = packName(this.#index.pack(first.place.pack).id);
    const startBytes = first.place.entry.offsetBytes;
    try {
      const keys = await this.#keysOf(first.place.pack, name, options);
      const bytes = await this.#range(name, startBytes, endOf(last) - startBytes, options);
      const blobs = group.map(({ chunk, place: { entry } }) => ({
        offsetBytes: entry.offsetBytes - startBytes,
        lengthBytes: entry.storedBytes + tagBytes,
        key: keys.blobKey(entry.slot, entry),
        codec: entry.codec,
        rawBytes: entry.rawBytes,
        id: chunk.id,
        idKey: this.#context.namer.keyOf(chunk.domain),
        target: chunk.target,
      }));
      const rawBytes = group.reduce((total, { place }) => total + place.entry.rawBytes, 0);
      const faults = await this.#work.run({ kind: 'open', bytes, blobs }, rawBytes);
      return group.map((_, place) => typeof faults !== 'string' && faults[place] === null);
    } catch (error) {
      if (!(error instanceof RepositoryError)) throw error;
      return group.map(() => false);
    }
  }

  async #tryPlaces(
    id: Buffer,
    domain: ChunkDomain,
    tried: Set<number>,
    options: CallOptions,
  ): Promise<Buffer | RepositoryError | null> {
    let failure: RepositoryError | null = null;
    for (const place of this.#index.find(id)) {
      if (tried.has(place.pack)) continue;
      tried.add(place.pack);
      for (let attempt = 0; attempt < 2; attempt++) {
        const read = await this.#attempt(place, domain, options);
        if (Buffer.isBuffer(read)) return read;
        failure = read;
      }
    }
    return failure;
  }

  async #attempt(
    place: ChunkPlace,
    domain: ChunkDomain,
    options: CallOptions,
  ): Promise<Buffer | RepositoryError> {
    try {
      return await this.readPlace(place, domain, options);
    } catch (error) {
      // A turned bit in the version of a pack says REPOSITORY_TOO_NEW, and no other pack is worse for that.
      if (error instanceof RepositoryError) return error;
      throw error;
    }
  }

  /** Reads a chunk from this very place. Rejects with REPOSITORY_DAMAGED, also for a pack that is gone. */
  async readPlace(
    { pack, entry }: ChunkPlace,
    domain: ChunkDomain,
    options: CallOptions = {},
  ): Promise<Buffer> {
    const name = packName(this.#index.pack(pack).id);
    if (entry.domain.type !== domain.type || entry.domain.chunkSizeBytes !== domain.chunkSizeBytes)
      throw damaged(name, 'it holds a chunk of another type than whoever refers to it says');
    const keys = await this.#keysOf(pack, name, options);
    const blob = await this.#range(name, entry.offsetBytes, entry.storedBytes + tagBytes, options);
    return openChunk(blob, entry, keys, this.#context.namer, name);
  }

  async #keysOf(pack: number, name: string, options: CallOptions): Promise<PackKeys> {
    const known = this.#keys.get(pack);
    this.#keys.delete(pack);
    const keys =
      known ?? packKeysOf(await this.#range(name, 0, packHeaderBytes, options), name, this.#context);
    this.#keys.set(pack, keys);
    if (this.#keys.size > packKeysMax)
      for (const oldest of this.#keys.keys()) {
        this.#keys.delete(oldest);
        break;
      }
    return keys;
  }

  async #range(
    name: string,
    offsetBytes: number,
    lengthBytes: number,
    options: CallOptions,
  ): Promise<Buffer> {
    const range = { offsetBytes, lengthBytes };
    const bytes = await this.#context.backend.read(name, { ...options, range });
    if (bytes === null) throw damaged(name, 'it is gone');
    if (bytes.length !== lengthBytes) throw damaged(name, 'it ends too early');
    return bytes;
  }
}

interface PlacedChunk {
  readonly chunk: WantedChunk;
  readonly place: ChunkPlace;
}

function endOf({ place: { entry } }: PlacedChunk): number {
  return entry.offsetBytes + entry.storedBytes + tagBytes;
}

/** Whether a place holds what whoever refers to it says. */
function isAsWanted({ entry }: ChunkPlace, { domain, target }: WantedChunk): boolean {
  const { type, chunkSizeBytes } = entry.domain;
  return type === domain.type && chunkSizeBytes === domain.chunkSizeBytes && entry.rawBytes === target.length;
}

function missing(id: Buffer, domain: ChunkDomain): RepositoryError {
  return new RepositoryError('CHUNK_MISSING', `${domain.type} chunk ${id.toString('hex')} is in no pack`, {
    hint: 'stillpoint verify --all --data names every backup that is touched',
  });
}
