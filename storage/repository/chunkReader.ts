import type { CallOptions } from '../backends/backend.ts';
import type { ChunkDomain } from './chunkId.ts';
import type { ChunkIndex } from './chunkIndex.ts';
import type { ChunkPlace } from './chunkTable.ts';
import { damaged, RepositoryError } from './errors.ts';
import { packName } from './names.ts';
import type { RepositoryContext } from './objects.ts';
import { type PackKeys, packHeaderBytes } from './packFormat.ts';
import { openChunk, packKeysOf } from './packReader.ts';
import { tagBytes } from './seal.ts';

/** Keys of packs that are kept, the least recently used one goes first. */
const packKeysMax = 4096;

/** Reads chunks, from any pack that has them. What it returns is what was stored (invariant 9). */
export class ChunkReader {
  readonly #context: RepositoryContext;
  readonly #index: ChunkIndex;
  readonly #keys = new Map<number, PackKeys>();

  constructor(context: RepositoryContext, index: ChunkIndex) {
    this.#context = context;
    this.#index = index;
  }

  /**
   * The content of a chunk. A place that is damaged is read twice, then others are tried: those of index objects that
   * were written since (a collection may have moved the chunk), then packs that no index names.
   *
   * Rejects with CHUNK_MISSING, REPOSITORY_DAMAGED.
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
      if (error instanceof RepositoryError && error.code === 'REPOSITORY_DAMAGED') return error;
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

function missing(id: Buffer, domain: ChunkDomain): RepositoryError {
  return new RepositoryError('CHUNK_MISSING', `${domain.type} chunk ${id.toString('hex')} is in no pack`, {
    hint: 'stillpoint verify --all --data names every backup that is touched',
  });
}
