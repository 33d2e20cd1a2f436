import { deriveKey, hmac } from './seal.ts';
import { isChunkBytes } from './limits.ts';

/** Length of an id. */
export const chunkIdBytes = 32;

/** The id of a chunk, or of a whole page, that is all zeros. Nothing is stored for it. */
export const zeroId: Buffer = Buffer.alloc(chunkIdBytes);

/** What a chunk holds: bytes of a stream, a page of ids, or the root of a stream. */
export type ChunkType = 'data' | 'page' | 'root';

/** Numbers of the types in packs; never to be changed. */
export const chunkTypeNumbers = { data: 1, page: 2, root: 3 } as const satisfies Record<ChunkType, number>;

/** Chunks are compared, and shared, within one domain only. */
export interface ChunkDomain {
  readonly type: ChunkType;
  /** Chunk size of the streams that use it, in bytes. */
  readonly chunkSizeBytes: number;
}

/**
 * Makes ids: a keyed hash of the content, so that equal content is stored once (invariant 4) and yet nobody without
 * the key can tell from an id what a chunk holds.
 */
export class ChunkNamer {
  readonly #dedupKey: Buffer;
  readonly #keys = new Map<string, Buffer>();

  constructor(dedupKey: Buffer) {
    this.#dedupKey = dedupKey;
  }

  idOf(domain: ChunkDomain, content: Uint8Array): Buffer {
    return hmac(this.keyOf(domain), content);
  }

  /** The key of the HMAC that makes the ids of a domain. */
  keyOf({ type, chunkSizeBytes }: ChunkDomain): Buffer {
    const label = `chunk-id/${chunkTypeNumbers[type]}/${chunkSizeBytes}`;
    let key = this.#keys.get(label);
    if (key === undefined) {
      if (!isChunkBytes(chunkSizeBytes)) throw new RangeError(`${chunkSizeBytes} is no chunk size`);
      key = deriveKey(this.#dedupKey, label);
      this.#keys.set(label, key);
    }
    return key;
  }
}
