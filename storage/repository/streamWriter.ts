import type { Change, Extent, VolumeSource } from '../../common/volumeSource.ts';
import { Run } from '../run.ts';
import type { ContentReference } from './backupManifest.ts';
import { type ChunkDomain, zeroId } from './chunkId.ts';
import { RepositoryError } from './errors.ts';
import { Lanes } from './lanes.ts';
import { idsPerPage, pagesMax } from './limits.ts';
import type { StreamReader } from './streamReader.ts';
import { chunkCountOf, chunkLengthOf, encodePage, encodeRoot, idCountOf, pageCountOf } from './streamRoot.ts';

/** Where the chunks of a stream go. */
export interface ChunkSink {
  /**
   * Stores a chunk unless it is there, and returns its id. The buffer belongs to the caller again afterwards; in memory
   * that is shared between threads it is not copied. Several may be on their way.
   */
  put(domain: ChunkDomain, content: Buffer, signal?: AbortSignal): Promise<Buffer>;
}

export interface StreamOptions {
  readonly chunkSizeBytes: number;
  readonly signal?: AbortSignal | undefined;
  /** Counts the bytes of the stream that are done, zeros and what is unchanged included. */
  readonly onProgress?: ((doneBytes: number) => void) | undefined;
  /** What the stream is made of instead of being read whole. */
  readonly increment?:
    | {
        /** The same volume in an earlier backup. */
        readonly parent: StreamReader;
        /** Every stretch in which it may differ from that. Zeros are changes. */
        readonly changes: readonly Change[];
      }
    | undefined;
}

/**
 * Stores a stream, several chunks at once: while some are read, others are worked on. Chunks that are zeros are not
 * stored; of an increment, pages without a change are shared with the parent, and only chunks with a change are read.
 *
 * Rejects with the source's own error, with what the sink rejects with, and with CHUNK_MISSING or REPOSITORY_DAMAGED
 * when the parent's pages cannot be read: the first failure counts, and what is under way then is left to itself.
 */
export async function writeStream(
  source: VolumeSource,
  sink: ChunkSink,
  options: StreamOptions,
): Promise<ContentReference> {
  const { chunkSizeBytes, increment } = options;
  const shape = { sizeBytes: source.virtualSizeBytes, chunkSizeBytes };
  assertFits(shape, increment?.parent);
  const run = new Run(options.signal);
  const extents = await run.unlessStopped(source.extents(run.signal));
  const data = extents.filter(({ zero }) => !zero);
  const stream: StreamWork = {
    source,
    sink,
    shape,
    run,
    signal: options.signal,
    holdsData: markChunks(shape, data),
    changed: increment === undefined ? null : markChanged(shape, increment.changes),
    parent: increment?.parent,
    lanes: new Lanes(Math.min(shape.sizeBytes, chunkSizeBytes)),
    progress: (chunk) => options.onProgress?.(Math.min(shape.sizeBytes, chunk * chunkSizeBytes)),
  };
  const pageIds = await writePages(stream);
  const root = encodeRoot({ ...shape, pageIds });
  const rootId = await run.unlessStopped(sink.put({ type: 'root', chunkSizeBytes }, root, options.signal));
  return { root: rootId.toString('hex'), ...shape };
}

interface Shape {
  readonly sizeBytes: number;
  readonly chunkSizeBytes: number;
}

/** A stream on its way. */
interface StreamWork {
  readonly source: VolumeSource;
  readonly sink: ChunkSink;
  readonly shape: Shape;
  readonly run: Run;
  /** The caller's: what is put is not taken back because something else failed. */
  readonly signal: AbortSignal | undefined;
  /** By chunk: whether it must be read. */
  readonly holdsData: Uint8Array;
  /** By chunk: whether it may differ from the parent's; `null` without a parent. */
  readonly changed: Uint8Array | null;
  readonly parent: StreamReader | undefined;
  readonly lanes: Lanes;
  /** Everything before this chunk is done. */
  readonly progress: (chunk: number) => void;
}

/** A page of which chunks are still to be stored. */
interface OpenPage {
  readonly number: number;
  /** Its first chunk, and the one behind its last. */
  readonly first: number;
  readonly end: number;
  /** Of each chunk, as soon as it is known; none of a page that is the parent's. */
  readonly ids: (Buffer | undefined)[];
  chunksLeft: number;
}

interface PageChunk {
  readonly page: OpenPage;
  readonly place: number;
}

/**
 * Stores all pages and the chunks on them. Chunks of several pages are worked on at once: where changes lie apart, a page
 * has one or two of them. Returns the ids of the pages.
 */
async function writePages(stream: StreamWork): Promise<readonly Buffer[]> {
  const { shape, run } = stream;
  const pageIds: Buffer[] = [];
  const progress = new PageProgress(stream.progress);
  await stream.lanes.run(run, chunksToRead(stream, pageIds, progress), async ({ page, place }, buffer) => {
    page.ids[place] = await putChunk(stream, page.first + place, buffer);
    page.chunksLeft -= 1;
    progress.tell();
    if (page.chunksLeft === 0) pageIds[page.number] = await putPage(stream, page);
  });
  const count = pageCountOf(shape.sizeBytes, shape.chunkSizeBytes);
  const found = pageIds.filter(() => true);
  if (found.length !== count) throw new Error(`${found.length} pages are stored where ${count} stand`);
  return found;
}

/** The chunks that must be read, page by page; stores pages that have none. */
async function* chunksToRead(
  stream: StreamWork,
  pageIds: Buffer[],
  progress: PageProgress,
): AsyncGenerator<PageChunk, void, undefined> {
  const { shape, holdsData, changed, parent, run } = stream;
  const numbers = Array.from(
    { length: pageCountOf(shape.sizeBytes, shape.chunkSizeBytes) },
    (_, page) => page,
  );
  const isChanged = (page: number): boolean => {
    const first = page * idsPerPage;
    return changed?.subarray(first, first + idsPerPage).includes(1) !== false;
  };
  const parentPages = parent?.walkPages(numbers.filter(isChanged), run.signal);
  for (const number of numbers) {
    const first = number * idsPerPage;
    const count = idCountOf(shape, number);
    const parentPage = parent?.root.pageIds[number];
    if (parentPage !== undefined && !isChanged(number)) {
      progress.add({ number, first, end: first + count, ids: [], chunksLeft: 0 });
      pageIds[number] = parentPage;
      continue;
    }
    const known = parentPages === undefined ? [] : await nextPage(parentPages, run);
    const ids = Array.from({ length: count }, (_, place) => {
      if (changed?.[first + place] === 0) return known[place];
      return holdsData[first + place] === 0 ? zeroId : undefined;
    });
    const toRead = ids.flatMap((id, place) => (id === undefined ? [place] : []));
    const page: OpenPage = { number, first, end: first + count, ids, chunksLeft: toRead.length };
    progress.add(page);
    if (toRead.length === 0) pageIds[number] = await putPage(stream, page);
    for (const place of toRead) yield { page, place };
  }
}

async function nextPage(pages: ReturnType<StreamReader['walkPages']>, run: Run): Promise<readonly Buffer[]> {
  const next = await run.unlessStopped(pages.next());
  if (next.done === true) throw new Error('the parent has fewer pages than were found to have changed');
  return next.value.ids;
}

/** Returns the id of a page of which all chunks are stored. */
async function putPage({ shape, run, sink, signal }: StreamWork, page: OpenPage): Promise<Buffer> {
  const found = page.ids.filter((id) => id !== undefined);
  if (found.length !== page.ids.length)
    throw new Error(`page ${page.number} has ${found.length} ids where ${page.ids.length} stand`);
  if (found.every((id) => id.equals(zeroId))) return zeroId;
  const { chunkSizeBytes } = shape;
  return run.unlessStopped(sink.put({ type: 'page', chunkSizeBytes }, encodePage(found), signal));
}

/** Up to where a stream is done, of which several pages are under way. */
class PageProgress {
  readonly #told: (chunk: number) => void;
  readonly #open: OpenPage[] = [];
  /** Chunks of the first open page that are done, up to the first one that is not. */
  #done = 0;

  constructor(tell: (chunk: number) => void) {
    this.#told = tell;
  }

  add(page: OpenPage): void {
    this.#open.push(page);
    this.tell();
  }

  tell(): void {
    let doneBefore: number | null = null;
    for (let page = this.#open[0]; page !== undefined; page = this.#open[0]) {
      const before = this.#done;
      while (this.#done < page.ids.length && page.ids[this.#done] !== undefined) this.#done++;
      if (this.#done < page.ids.length) {
        if (this.#done > before) doneBefore = page.first + this.#done;
        break;
      }
      doneBefore = page.end;
      this.#open.shift();
      this.#done = 0;
    }
    if (doneBefore !== null) this.#told(doneBefore);
  }
}

async function putChunk(stream: StreamWork, chunk: number, buffer: Buffer): Promise<Buffer> {
  const { source, sink, shape, run, signal } = stream;
  const { chunkSizeBytes } = shape;
  const content = buffer.subarray(0, chunkLengthOf(shape, chunk));
  await source.readInto(content, chunk * chunkSizeBytes, run.signal);
  run.signal.throwIfAborted();
  return isZero(content) ? zeroId : sink.put({ type: 'data', chunkSizeBytes }, content, signal);
}

/** For each chunk 1 if it may differ from the parent's. Throws for a stretch that is not in the stream. */
function markChanged(shape: Shape, changes: readonly Change[]): Uint8Array {
  const marks = markChunks(
    shape,
    changes.filter(({ unmarked }) => unmarked !== true),
  );
  const { sizeBytes, chunkSizeBytes } = shape;
  for (const change of changes) {
    if (change.unmarked !== true) continue;
    // A chunk of nothing else is compared by its id. Of another one the rest would have to be read.
    const end = endIn(shape, change);
    const endChunk = end === sizeBytes ? Math.ceil(end / chunkSizeBytes) : Math.floor(end / chunkSizeBytes);
    marks.fill(1, Math.ceil(change.offsetBytes / chunkSizeBytes), endChunk);
  }
  return marks;
}

/** For each chunk 1 if a stretch touches it. Throws for a stretch that is not in the stream. */
function markChunks(shape: Shape, stretches: readonly Extent[]): Uint8Array {
  const { sizeBytes, chunkSizeBytes } = shape;
  const marks = new Uint8Array(chunkCountOf(sizeBytes, chunkSizeBytes));
  for (const stretch of stretches) {
    const end = endIn(shape, stretch);
    if (stretch.lengthBytes > 0)
      marks.fill(1, Math.floor(stretch.offsetBytes / chunkSizeBytes), Math.ceil(end / chunkSizeBytes));
  }
  return marks;
}

function endIn({ sizeBytes }: Shape, { offsetBytes, lengthBytes }: Extent): number {
  const end = offsetBytes + lengthBytes;
  if (offsetBytes < 0 || lengthBytes < 0 || end > sizeBytes)
    throw new RangeError(`${lengthBytes} bytes at ${offsetBytes} are not in the stream`);
  return end;
}

/** Invariant 7: an increment stands on a stream of the same size and chunk size only. */
function assertFits({ sizeBytes, chunkSizeBytes }: Shape, parent: StreamReader | undefined): void {
  if (pageCountOf(sizeBytes, chunkSizeBytes) > pagesMax)
    throw new RangeError(`a stream of ${sizeBytes} bytes needs a larger chunk size`);
  if (parent === undefined) return;
  if (parent.root.sizeBytes === sizeBytes && parent.root.chunkSizeBytes === chunkSizeBytes) return;
  throw new RepositoryError(
    'SESSION_STATE_INVALID',
    'the parent of the increment has another size or chunk size',
    {
      hint: 'read the volume in full: stillpoint backup MACHINE --reread',
    },
  );
}

const zeros = Buffer.alloc(64 * 1024);

function isZero(content: Buffer): boolean {
  for (let start = 0; start < content.length; start += zeros.length) {
    const piece = content.subarray(start, start + zeros.length);
    if (!piece.equals(zeros.subarray(0, piece.length))) return false;
  }
  return true;
}

/** A stream out of bytes that are in memory. */
export function bufferSource(content: Buffer): VolumeSource {
  return {
    virtualSizeBytes: content.length,
    extents: () =>
      Promise.resolve(
        content.length === 0 ? [] : [{ offsetBytes: 0, lengthBytes: content.length, zero: false }],
      ),
    readInto: async (target, offsetBytes) => {
      content.copy(target, 0, offsetBytes, offsetBytes + target.length);
    },
  };
}
