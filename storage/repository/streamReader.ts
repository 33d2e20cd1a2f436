import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import type { CallOptions } from '../backends/backend.ts';
import { unlessAborted } from '../../common/unlessAborted.ts';
import type { ContentReference } from './backupManifest.ts';
import { zeroId } from './chunkId.ts';
import type { ChunkReader, WantedChunk } from './chunkReader.ts';
import { ChunkWindow } from './chunkWindow.ts';
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

/** Pages that are kept while a stream is read. */
const pagesKept = 64;
/** Pages that are read at once for who walks over them. */
const pagesAhead = 8;
/** Chunks in memory take so much, or so many of them. */
const windowBytes = 16 * 1024 * 1024;
const windowChunksMin = 3;
const windowChunksMax = 64;
/** Reads in a row after which more is expected. */
const streakMin = 2;

/**
 * Reads a stream: a volume, a memory state or a file of a backup. Whatever is missing or not authentic rejects;
 * zeros come from the id of zeros alone (invariant 9).
 */
export class StreamReader implements VolumeSource {
  readonly virtualSizeBytes: number;
  readonly root: StreamRoot;
  readonly #reader: ChunkReader;
  readonly #window: ChunkWindow;
  readonly #pages = new Map<number, Promise<readonly Buffer[]>>();
  /** How many reads in a row each began where the one before it ended, and where the last one ended. */
  #streak = 0;
  #streakEnd = 0;
  #isReadingAhead = false;
  /** Up to where was read ahead. */
  #aheadEnd = 0;

  private constructor(reader: ChunkReader, root: StreamRoot) {
    this.#reader = reader;
    this.root = root;
    this.virtualSizeBytes = root.sizeBytes;
    const { sizeBytes, chunkSizeBytes } = root;
    const slots = Math.max(windowChunksMin, Math.floor(windowBytes / chunkSizeBytes));
    this.#window = new ChunkWindow(Math.min(sizeBytes, chunkSizeBytes), Math.min(slots, windowChunksMax));
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
    return kept(this.#pages, pagesKept, page, signal, async () => {
      const id = this.root.pageIds[page];
      if (id === undefined) throw new RangeError(`there is no page ${page}`);
      const count = idCountOf(this.root, page);
      if (id.equals(zeroId)) return Array.from({ length: count }, () => zeroId);
      const { chunkSizeBytes } = this.root;
      const bytes = await this.#reader.read(id, { type: 'page', chunkSizeBytes }, { signal });
      return decodePage(bytes, count, `page ${id.toString('hex')}`);
    });
  }

  /**
   * The pages of these numbers, one after the other, while the next ones are already being read: over a network each
   * takes a round trip.
   */
  async *walkPages(
    pages: readonly number[],
    signal?: AbortSignal,
  ): AsyncGenerator<{ readonly page: number; readonly ids: readonly Buffer[] }, void, undefined> {
    for (const [place, page] of pages.entries()) {
      for (const next of pages.slice(place + 1, place + pagesAhead)) {
        // Whatever fails is told when its turn comes.
        this.pageIds(next, signal).catch(() => undefined);
      }
      yield { page, ids: await this.pageIds(page, signal) };
    }
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
    for await (const { page, ids } of this.walkPages([...this.root.pageIds.keys()], signal)) {
      for (const [place, id] of ids.entries()) {
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

  /** Buffers of chunks that there are. */
  get chunkBuffers(): number {
    return this.#window.buffers;
  }

  /**
   * Every stretch in which this stream differs from another one of its size, by whole chunks: what is equal has one id.
   * Pages that are shared are not read.
   */
  async changesSince(before: StreamReader, signal?: AbortSignal): Promise<readonly Extent[]> {
    const { sizeBytes, chunkSizeBytes, pageIds } = this.root;
    if (before.root.sizeBytes !== sizeBytes || before.root.chunkSizeBytes !== chunkSizeBytes)
      throw new RangeError('the streams are of different shapes');
    const changes: Extent[] = [];
    for (const [page, pageId] of pageIds.entries()) {
      const other = before.root.pageIds[page];
      if (other?.equals(pageId)) continue;
      const old = await before.pageIds(page, signal);
      for (const [place, id] of (await this.pageIds(page, signal)).entries()) {
        if (old[place]?.equals(id)) continue;
        const chunk = page * idsPerPage + place;
        changes.push({
          offsetBytes: chunk * chunkSizeBytes,
          lengthBytes: chunkLengthOf(this.root, chunk),
          zero: id.equals(zeroId),
        });
      }
    }
    return changes;
  }

  /**
   * As `VolumeSource.readInto`. Several chunks are read at once; who reads one stretch after the other has the next ones
   * read ahead.
   */
  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    if (offsetBytes < 0 || offsetBytes + target.length > this.virtualSizeBytes)
      throw new RangeError(`${target.length} bytes at ${offsetBytes} are not in the stream`);
    if (target.length === 0) return;
    const { chunkSizeBytes } = this.root;
    const first = Math.floor(offsetBytes / chunkSizeBytes);
    const last = Math.floor((offsetBytes + target.length - 1) / chunkSizeBytes);
    const isStreak = await this.#noteRead(first, last, signal);
    const request = { reader: {}, signal, until: isStreak ? this.chunkCount - 1 : last };
    for (let chunk = first; chunk <= last; chunk++) {
      const start = Math.max(offsetBytes, chunk * chunkSizeBytes);
      const end = Math.min(offsetBytes + target.length, (chunk + 1) * chunkSizeBytes);
      const piece = target.subarray(start - offsetBytes, end - offsetBytes);
      await this.#copyChunk(chunk, start - chunk * chunkSizeBytes, piece, request);
    }
  }

  /** All of it, for what is small. */
  async readAll(signal?: AbortSignal): Promise<Buffer> {
    const content = Buffer.alloc(this.virtualSizeBytes);
    await this.readInto(content, 0, signal);
    return content;
  }

  async #copyChunk(chunk: number, startBytes: number, piece: Buffer, request: ReadRequest): Promise<void> {
    const { signal } = request;
    for (;;) {
      signal?.throwIfAborted();
      if ((await this.chunkId(chunk, signal)).equals(zeroId)) {
        piece.fill(0);
        return;
      }
      const held = this.#window.hold(chunk);
      if (held === null) {
        await this.#fetchOrWait(chunk, request);
        continue;
      }
      try {
        this.#readAhead(chunk + 1, request);
        await unlessAborted(held.ready, signal);
        held.buffer.copy(piece, 0, startBytes, startBytes + piece.length);
        return;
      } catch (error) {
        // Of a reading that somebody else began, and may have cancelled, one's own tells what is true.
        if (held.reader === request.reader || signal?.aborted === true) throw error;
      } finally {
        this.#window.release(held);
      }
    }
  }

  async #fetchOrWait(chunk: number, request: ReadRequest): Promise<void> {
    const { changes } = this.#window;
    const { added } = await this.#fetch(chunk, request);
    const isLeft = added === 0 && !this.#window.has(chunk) && this.#window.changes === changes;
    if (isLeft) await this.#window.change(request.signal);
  }

  /**
   * Has the next chunks from one on be read for which there is room, and that are no zeros. Returns how many, and up to
   * which chunk it has looked.
   */
  async #fetch(
    from: number,
    { reader, signal, until }: ReadRequest,
  ): Promise<{ readonly added: number; readonly end: number }> {
    const countMax = Math.ceil(this.#window.slotsMax / 2);
    const wanted: { readonly number: number; readonly id: Buffer }[] = [];
    let end = from;
    for (; end <= until && end < from + idsPerPage && wanted.length < countMax; end++) {
      const page = Math.floor(end / idsPerPage);
      // A page that is still to be read can wait until somebody comes near it.
      if (wanted.length > 0 && !this.#pages.has(page)) break;
      const id = (await this.pageIds(page, signal))[end % idsPerPage];
      if (id !== undefined && !id.equals(zeroId)) wanted.push({ number: end, id });
    }
    const { chunkSizeBytes } = this.root;
    const added: { readonly number: number; readonly chunk: WantedChunk }[] = [];
    for (const { number, id } of wanted) {
      if (this.#window.has(number)) continue;
      const slot = this.#window.add(number, reader);
      if (slot === null) {
        end = number;
        break;
      }
      const target = slot.buffer.subarray(0, chunkLengthOf(this.root, number));
      added.push({ number, chunk: { id, domain: { type: 'data', chunkSizeBytes }, target } });
    }
    const chunks = added.map(({ chunk }) => chunk);
    for (const [place, reading] of this.#reader.readMany(chunks, { signal }).entries()) {
      const number = added[place]?.number;
      if (number !== undefined) void this.#window.settle(number, reading);
    }
    return { added: added.length, end };
  }

  /** Sees to it that chunks are on their way before somebody waits for them. */
  #readAhead(from: number, request: ReadRequest): void {
    if (this.#isReadingAhead || from > request.until) return;
    const isNear = from <= this.#aheadEnd && this.#aheadEnd <= from + idsPerPage;
    const start = isNear ? this.#aheadEnd : from;
    if (start > from + this.#window.slotsMax / 4) return;
    this.#isReadingAhead = true;
    void this.#fetchAhead(start, request);
  }

  async #fetchAhead(start: number, request: ReadRequest): Promise<void> {
    try {
      this.#aheadEnd = (await this.#fetch(start, request)).end;
    } catch {
      // Whatever keeps it from it will also be told to who wants that chunk.
    } finally {
      this.#isReadingAhead = false;
    }
  }

  /** Whether reads follow one behind the other, with nothing but zeros left out. */
  async #noteRead(first: number, last: number, signal: AbortSignal | undefined): Promise<boolean> {
    const from = this.#streakEnd;
    this.#streakEnd = last;
    const follows = first >= from && (first <= from + 1 || (await this.#areZeros(from + 1, first, signal)));
    this.#streak = follows ? this.#streak + 1 : 0;
    return this.#streak >= streakMin;
  }

  async #areZeros(from: number, end: number, signal: AbortSignal | undefined): Promise<boolean> {
    for (let chunk = from; chunk < end; chunk++) {
      const page = Math.floor(chunk / idsPerPage);
      if (this.root.pageIds[page]?.equals(zeroId) === true) chunk = (page + 1) * idsPerPage - 1;
      else if (!(await this.chunkId(chunk, signal)).equals(zeroId)) return false;
    }
    return true;
  }
}

/** What one call reads. */
interface ReadRequest {
  /** Stands for the call. */
  readonly reader: object;
  readonly signal: AbortSignal | undefined;
  /** The last chunk that may be read with those it wants. */
  readonly until: number;
}

/** Keeps what was read last; several that ask for one thing at once wait for one read; a failure is not kept. */
async function kept<Item>(
  cache: Map<number, Promise<Item>>,
  max: number,
  key: number,
  signal: AbortSignal | undefined,
  read: () => Promise<Item>,
): Promise<Item> {
  for (;;) {
    const known = cache.get(key);
    const item = known ?? read();
    cache.delete(key);
    cache.set(key, item);
    for (const oldest of cache.keys()) {
      if (cache.size <= max) break;
      cache.delete(oldest);
    }
    try {
      return await unlessAborted(item, signal);
    } catch (error) {
      if (signal?.aborted === true && known !== undefined) throw error;
      if (cache.get(key) === item) cache.delete(key);
      // Who began it may have cancelled it; one's own reading tells what is true.
      if (known === undefined) throw error;
    }
  }
}
