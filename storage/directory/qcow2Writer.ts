import { Bandwidth } from '../../common/bandwidth.ts';
import { summedBytesMax } from '../../common/chunkSums.ts';
import type { HashResult } from '../../common/copy.ts';
import { createDirect, directBuffers } from '../../common/directBuffers.ts';
import { removeUnfinished } from '../../common/files.ts';
import { clusterBytes, metadataClusters, planQcow2, storedRuns } from '../../common/qcow2/layout.ts';
import type { Qcow2Layout } from '../../common/qcow2/layout.ts';
import type { VolumeSource } from '../../common/volumeSource.ts';
import type { AddOptions } from '../storage.ts';
import { ChunkedFile, pieceBytes } from './chunkedFile.ts';
import { Run } from '../run.ts';
import { askSource } from './sourceReader.ts';

/** Pieces of the file that are read, hashed and written at the same time: 12 MiB of memory. */
export const piecesInFlight = 3;

/**
 * Writes a volume as a new standalone qcow2 file in one pass, and hashes its chunks on the way; the file's data is
 * on the disk when it returns, its name is not. Clusters that read as zeros become holes. Removes its own
 * unfinished file when it fails or is aborted. Reads that are still under way then are told to stop and not waited
 * for.
 *
 * @param to must not exist
 * @throws SourceFailure; Error for a source whose extents are not its size (see `planQcow2`); the reason of
 *   `signal`; EEXIST, ENOSPC, … of the system
 */
export async function writeQcow2(
  source: VolumeSource,
  to: string,
  options: AddOptions = {},
): Promise<HashResult> {
  options.signal?.throwIfAborted();
  const run = new Run(options.signal);
  const extents = await run.unlessStopped(askSource(() => source.extents(run.signal)));
  const layout = planQcow2(source.virtualSizeBytes, extents);
  if (layout.fileSizeBytes > summedBytesMax)
    throw new RangeError(`${to} would have ${layout.fileSizeBytes} bytes; ${summedBytesMax} are the most`);
  const file = await createDirect(to, 0o600);
  try {
    const image = new ChunkedFile(file, layout.fileSizeBytes, run);
    try {
      await writeImage(image, source, layout, run, options);
      return await image.finish(options);
    } catch (error) {
      run.fail(error);
      throw run.signal.reason;
    } finally {
      await image.close();
    }
  } catch (error) {
    await removeUnfinished(to);
    throw error;
  }
}

async function writeImage(
  image: ChunkedFile,
  source: VolumeSource,
  layout: Qcow2Layout,
  run: Run,
  options: AddOptions,
): Promise<void> {
  const bandwidth = new Bandwidth(options.limit);
  const buffers = directBuffers(piecesInFlight, pieceBytes);
  const underWay = new Set<Promise<void>>();
  let doneBytes = 0;
  const store = async (chunk: Chunk): Promise<void> => {
    const buffer = buffers.pop();
    if (buffer === undefined) throw new Error('more pieces are under way than there are buffers');
    const bytes = buffer.subarray(0, chunk.lengthBytes);
    await fill(bytes, chunk, source, run.signal);
    await image.write(chunk.index, bytes);
    // Of a chunk that failed it stays away: a late reply may still write into it.
    buffers.push(buffer);
    doneBytes += bytes.length;
    options.onProgress?.(doneBytes);
  };
  for (const chunk of chunksOf(layout)) {
    while (underWay.size >= piecesInFlight) await run.unlessStopped(Promise.race(underWay));
    await bandwidth.take(chunk.lengthBytes, run.signal);
    await options.throttle?.take(chunk.lengthBytes, run.signal);
    run.signal.throwIfAborted();
    const stored = store(chunk).catch((error: unknown) => run.fail(error));
    underWay.add(stored);
    void stored.then(() => underWay.delete(stored));
  }
  await run.unlessStopped(Promise.all(underWay));
  run.signal.throwIfAborted();
  await bandwidth.take(0, run.signal);
}

/** A stretch of the file: metadata, or bytes of the volume, which zeros fill up to a whole cluster. */
type Part =
  | { readonly kind: 'metadata'; readonly bytes: Buffer }
  | { readonly kind: 'data'; readonly offsetBytes: number; readonly lengthBytes: number };

/** What stands in one chunk of the file. */
interface Chunk {
  readonly index: number;
  readonly lengthBytes: number;
  readonly parts: readonly Part[];
}

/** The file from its beginning to its end. */
function* chunksOf(layout: Qcow2Layout): Generator<Chunk> {
  let parts: Part[] = [];
  let index = 0;
  let filledBytes = 0;
  for (const part of partsOf(layout)) {
    parts.push(part);
    filledBytes += storedBytes(part);
    if (filledBytes < pieceBytes) continue;
    yield { index, lengthBytes: filledBytes, parts };
    [parts, index, filledBytes] = [[], index + 1, 0];
  }
  if (parts.length > 0) yield { index, lengthBytes: filledBytes, parts };
}

/** None of them crosses from one chunk into the next. */
function* partsOf(layout: Qcow2Layout): Generator<Part> {
  const clustersOfChunk = pieceBytes / clusterBytes;
  let position = 0;
  for (const bytes of metadataClusters(layout)) {
    yield { kind: 'metadata', bytes };
    position += 1;
  }
  for (const { first, end } of storedRuns(layout.extents)) {
    let cluster = first;
    while (cluster < end) {
      const count = Math.min(end - cluster, clustersOfChunk - (position % clustersOfChunk));
      const offsetBytes = cluster * clusterBytes;
      const endBytes = Math.min((cluster + count) * clusterBytes, layout.virtualSizeBytes);
      yield { kind: 'data', offsetBytes, lengthBytes: endBytes - offsetBytes };
      cluster += count;
      position += count;
    }
  }
}

function storedBytes(part: Part): number {
  if (part.kind === 'metadata') return part.bytes.length;
  return Math.ceil(part.lengthBytes / clusterBytes) * clusterBytes;
}

/** Fills a chunk; its reads are under way together. */
async function fill(bytes: Buffer, chunk: Chunk, source: VolumeSource, signal: AbortSignal): Promise<void> {
  const reads: Promise<void>[] = [];
  let position = 0;
  for (const part of chunk.parts) {
    const place = bytes.subarray(position, position + storedBytes(part));
    if (part.kind === 'data') {
      const target = place.subarray(0, part.lengthBytes);
      place.fill(0, part.lengthBytes);
      reads.push(askSource(() => source.readInto(target, part.offsetBytes, signal)));
    } else part.bytes.copy(place);
    position += place.length;
  }
  await Promise.all(reads);
}
