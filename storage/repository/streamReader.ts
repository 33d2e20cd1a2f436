import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import type { CallOptions } from '../backends/backend.ts';
import type { ContentReference } from './backupManifest.ts';
import { zeroId } from './chunkId.ts';
import type { ChunkReader } from './chunkReader.ts';
import { damaged } from './errors.ts';
import { idsPerPage } from './limits.ts';
import {
  chunkCountOf,
  chunkLengthOf,
  decodePage,
  decodeRoot,
  idCountOf,
  type StreamRoot,
} from './streamRoot.ts';

/** Chunks and pages that are kept while a stream is read. */
const chunksKept = 8;
const pagesKept = 64;

/**
 * Reads a stream: a volume, a memory state or a file of a backup. Whatever is missing or not authentic rejects;
 * zeros come from the id of zeros alone (invariant 9).
 */
export class StreamReader implements VolumeSource {
  readonly virtualSizeBytes: number;
  readonly root: StreamRoot;
  readonly #reader: ChunkReader;
  readonly #chunks = new Map<number, Promise<Buffer | null>>();
  readonly #pages = new Map<number, Promise<readonly Buffer[]>>();

  private constructor(reader: ChunkReader, root: StreamRoot) {
    this.#reader = reader;
    this.root = root;
    this.virtualSizeBytes = root.sizeBytes;
  }

  /** Rejects with REPOSITORY_DAMAGED, CHUNK_MISSING. */
  static async open(
    reader: ChunkReader,
    content: ContentReference,
    options: CallOptions = {},
  ): Promise<StreamReader> {
    const id = Buffer.from(content.root, 'hex');
    const what = `root ${content.root}`;
    const { chunkSizeBytes } = content;
    const root = decodeRoot(await reader.read(id, { type: 'root', chunkSizeBytes }, options), what);
    // Said twice, compared here: a manifest must not lead to a stream of another shape.
    if (root.sizeBytes !== content.sizeBytes || root.chunkSizeBytes !== chunkSizeBytes)
      throw damaged(what, 'it has not the size that its manifest says');
    return new StreamReader(reader, root);
  }

  get chunkCount(): number {
    return chunkCountOf(this.root.sizeBytes, this.root.chunkSizeBytes);
  }

  /** Ids on a page. */
  async pageIds(page: number, signal?: AbortSignal): Promise<readonly Buffer[]> {
    return kept(this.#pages, pagesKept, page, async () => {
      const id = this.root.pageIds[page];
      if (id === undefined) throw new RangeError(`there is no page ${page}`);
      const count = idCountOf(this.root, page);
      if (id.equals(zeroId)) return Array.from({ length: count }, () => zeroId);
      const { chunkSizeBytes } = this.root;
      const bytes = await this.#reader.read(id, { type: 'page', chunkSizeBytes }, { signal });
      return decodePage(bytes, count, `page ${id.toString('hex')}`);
    });
  }

  /** Id of a chunk by its number. */
  async chunkId(chunk: number, signal?: AbortSignal): Promise<Buffer> {
    const ids = await this.pageIds(Math.floor(chunk / idsPerPage), signal);
    const id = ids[chunk % idsPerPage];
    if (id === undefined) throw new RangeError(`there is no chunk ${chunk}`);
    return id;
  }

  async extents(signal?: AbortSignal): Promise<readonly Extent[]> {
    const extents: Extent[] = [];
    for (let page = 0; page < this.root.pageIds.length; page++) {
      for (const [place, id] of (await this.pageIds(page, signal)).entries()) {
        const chunk = page * idsPerPage + place;
        const lengthBytes = chunkLengthOf(this.root, chunk);
        const zero = id.equals(zeroId);
        const last = extents.at(-1);
        if (last?.zero === zero)
          extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
        else extents.push({ offsetBytes: chunk * this.root.chunkSizeBytes, lengthBytes, zero });
      }
    }
    return extents;
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    if (offsetBytes < 0 || offsetBytes + target.length > this.virtualSizeBytes)
      throw new RangeError(`${target.length} bytes at ${offsetBytes} are not in the stream`);
    const { chunkSizeBytes } = this.root;
    let filled = 0;
    while (filled < target.length) {
      const position = offsetBytes + filled;
      const number = Math.floor(position / chunkSizeBytes);
      const start = position - number * chunkSizeBytes;
      const length = Math.min(target.length - filled, chunkLengthOf(this.root, number) - start);
      const chunk = await this.#chunk(number, signal);
      if (chunk === null) target.fill(0, filled, filled + length);
      else chunk.copy(target, filled, start, start + length);
      filled += length;
    }
  }

  /** All of it, for what is small. */
  async readAll(signal?: AbortSignal): Promise<Buffer> {
    const content = Buffer.alloc(this.virtualSizeBytes);
    await this.readInto(content, 0, signal);
    return content;
  }

  /** `null` for zeros. */
  async #chunk(number: number, signal?: AbortSignal): Promise<Buffer | null> {
    return kept(this.#chunks, chunksKept, number, async () => {
      const id = await this.chunkId(number, signal);
      if (id.equals(zeroId)) return null;
      const { chunkSizeBytes } = this.root;
      const content = await this.#reader.read(id, { type: 'data', chunkSizeBytes }, { signal });
      if (content.length !== chunkLengthOf(this.root, number))
        throw damaged(`chunk ${id.toString('hex')}`, 'it has another length than its place in the stream');
      return content;
    });
  }
}

/** Keeps what was read last; several that ask for one thing at once wait for one read; a failure is not kept. */
async function kept<Item>(
  cache: Map<number, Promise<Item>>,
  max: number,
  key: number,
  read: () => Promise<Item>,
): Promise<Item> {
  const known = cache.get(key);
  const item = known ?? read();
  cache.delete(key);
  cache.set(key, item);
  for (const oldest of cache.keys()) {
    if (cache.size <= max) break;
    cache.delete(oldest);
  }
  try {
    return await item;
  } catch (error) {
    if (cache.get(key) === item) cache.delete(key);
    throw error;
  }
}
