import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import type { ContentReference } from './backupManifest.ts';
import { type ChunkDomain, zeroId } from './chunkId.ts';
import { RepositoryError } from './errors.ts';
import { idsPerPage, pagesMax } from './limits.ts';
import type { StreamReader } from './streamReader.ts';
import { chunkCountOf, chunkLengthOf, encodePage, encodeRoot, idCountOf, pageCountOf } from './streamRoot.ts';

/** Where the chunks of a stream go. */
export interface ChunkSink {
  /** Stores a chunk unless it is there, and returns its id. The buffer belongs to the caller again afterwards. */
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
        readonly changes: readonly Extent[];
      }
    | undefined;
}

/**
 * Stores a stream. Chunks that are zeros are not stored; of an increment, pages without a change are shared with the
 * parent, and only chunks with a change are read.
 *
 * Rejects with the source's own error, with what the sink rejects with, and with CHUNK_MISSING or REPOSITORY_DAMAGED
 * when the parent's pages cannot be read.
 */
export async function writeStream(
  source: VolumeSource,
  sink: ChunkSink,
  options: StreamOptions,
): Promise<ContentReference> {
  const { chunkSizeBytes, signal, increment } = options;
  const shape = { sizeBytes: source.virtualSizeBytes, chunkSizeBytes };
  assertFits(shape, increment?.parent);
  const extents = await source.extents(signal);
  const holdsData = markChunks(
    shape,
    extents.filter(({ zero }) => !zero),
  );
  const changed = increment === undefined ? null : markChunks(shape, increment.changes);
  const buffer = Buffer.alloc(chunkSizeBytes);
  const pageIds: Buffer[] = [];
  for (let page = 0; page < pageCountOf(shape.sizeBytes, chunkSizeBytes); page++) {
    const first = page * idsPerPage;
    const count = idCountOf(shape, page);
    const parentPage = increment?.parent.root.pageIds[page];
    if (
      parentPage !== undefined &&
      changed?.subarray(first, first + count).every((flag) => flag === 0) === true
    ) {
      pageIds.push(parentPage);
    } else {
      const ids = increment === undefined ? [] : [...(await increment.parent.pageIds(page, signal))];
      for (let chunk = first; chunk < first + count; chunk++) {
        if (changed !== null && changed[chunk] === 0) continue;
        const content = buffer.subarray(0, chunkLengthOf(shape, chunk));
        ids[chunk - first] =
          holdsData[chunk] === 0
            ? zeroId
            : await putChunk(source, sink, chunk * chunkSizeBytes, content, options);
        options.onProgress?.(Math.min(shape.sizeBytes, (chunk + 1) * chunkSizeBytes));
      }
      pageIds.push(await putPage(sink, ids, options));
    }
    options.onProgress?.(Math.min(shape.sizeBytes, (first + count) * chunkSizeBytes));
  }
  const root = await sink.put({ type: 'root', chunkSizeBytes }, encodeRoot({ ...shape, pageIds }), signal);
  return { root: root.toString('hex'), ...shape };
}

async function putChunk(
  source: VolumeSource,
  sink: ChunkSink,
  offsetBytes: number,
  content: Buffer,
  { chunkSizeBytes, signal }: StreamOptions,
): Promise<Buffer> {
  await source.readInto(content, offsetBytes, signal);
  return isZero(content) ? zeroId : sink.put({ type: 'data', chunkSizeBytes }, content, signal);
}

async function putPage(
  sink: ChunkSink,
  ids: readonly Buffer[],
  { chunkSizeBytes, signal }: StreamOptions,
): Promise<Buffer> {
  if (ids.every((id) => id.equals(zeroId))) return zeroId;
  return sink.put({ type: 'page', chunkSizeBytes }, encodePage(ids), signal);
}

/** For each chunk 1 if a stretch touches it. Throws for a stretch that is not in the stream. */
function markChunks(
  { sizeBytes, chunkSizeBytes }: { readonly sizeBytes: number; readonly chunkSizeBytes: number },
  stretches: readonly Extent[],
): Uint8Array {
  const marks = new Uint8Array(chunkCountOf(sizeBytes, chunkSizeBytes));
  for (const { offsetBytes, lengthBytes } of stretches) {
    const end = offsetBytes + lengthBytes;
    if (offsetBytes < 0 || lengthBytes < 0 || end > sizeBytes)
      throw new RangeError(`${lengthBytes} bytes at ${offsetBytes} are not in the stream`);
    if (lengthBytes > 0)
      marks.fill(1, Math.floor(offsetBytes / chunkSizeBytes), Math.ceil(end / chunkSizeBytes));
  }
  return marks;
}

/** Invariant 7: an increment stands on a stream of the same size and chunk size only. */
function assertFits(
  { sizeBytes, chunkSizeBytes }: { readonly sizeBytes: number; readonly chunkSizeBytes: number },
  parent: StreamReader | undefined,
): void {
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
