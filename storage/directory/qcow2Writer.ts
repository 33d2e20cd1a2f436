import { open, rm } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileHasher } from '../../common/chunkSums.ts';
import type { HashResult } from '../../common/copy.ts';
import { clusterBytes, metadataClusters, planQcow2, storedRuns } from '../../common/qcow2/layout.ts';
import type { Qcow2Layout } from '../../common/qcow2/layout.ts';
import type { VolumeSource } from '../../common/volumeSource.ts';
import type { AddOptions } from '../storage.ts';

/** Bytes read at once. Those being read, hashed and written together are 13 blocks, 26 MiB. */
const blockBytes = 2 * 1024 * 1024;
const readsInFlight = 8;
const writesInFlight = 4;
/**
 * What was written is brought to the disk in pieces of this size: one fsync at the end of a large volume would
 * keep silent for so long that the storage counts as unreachable.
 */
const flushBytes = 256 * 1024 * 1024;
const zeros = Buffer.alloc(clusterBytes);

/** Wraps an error of the source, so that a system error in it is not taken for one of the storage. */
export class SourceFailure extends Error {
  constructor(cause: unknown) {
    super('the source of a volume failed', { cause });
  }
}

/**
 * Writes a volume as a new standalone qcow2 file, front to back, and hashes it by chunks on the way; the file's data is on
 * the disk when it returns, its name is not. Clusters that read as zeros become holes. Removes its own unfinished
 * file when it fails or is aborted. Reads that are still under way then are told to stop and not waited for.
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
  const file = await open(to, 'wx', 0o600);
  try {
    const image = new HashedFile(file, run);
    try {
      await writeImage(image, source, layout, run, options);
      if (image.sizeBytes !== layout.fileSizeBytes)
        throw new Error(`${image.sizeBytes} bytes written instead of ${layout.fileSizeBytes}`);
      return await image.finish(options);
    } catch (error) {
      run.fail(error);
      throw run.signal.reason;
    } finally {
      await image.close();
    }
  } catch (error) {
    await rm(to, { force: true });
    throw error;
  }
}

async function writeImage(
  image: HashedFile,
  source: VolumeSource,
  layout: Qcow2Layout,
  run: Run,
  options: AddOptions,
): Promise<void> {
  const startedAt = performance.now();
  const append = async (block: Buffer): Promise<void> => {
    await image.append(block);
    options.onProgress?.(image.sizeBytes);
    await holdBack(image.sizeBytes, startedAt, run, options);
  };
  for (const cluster of metadataClusters(layout)) await append(cluster);
  for await (const block of blocksInOrder(source, layout, run)) await append(block);
}

async function holdBack(bytesDone: number, startedAt: number, run: Run, options: AddOptions): Promise<void> {
  const limit = options.bandwidthBytesPerSecond ?? 0;
  if (limit <= 0) return;
  const waitMs = startedAt + (bytesDone / limit) * 1000 - performance.now();
  if (waitMs >= 1) await sleep(waitMs, undefined, { signal: run.signal });
}

/** What stops all of the work as soon as one part of it fails. */
class Run {
  /** Its reason is the first failure, or that of the caller's signal. */
  readonly signal: AbortSignal;
  readonly #failure = new AbortController();

  constructor(signal: AbortSignal | undefined) {
    const own = this.#failure.signal;
    this.signal = signal === undefined ? own : AbortSignal.any([signal, own]);
  }

  /** May be called for everything that fails after the first failure, too. */
  fail(error: unknown): void {
    this.#failure.abort(error);
  }

  /** Waits for something that may not listen to the signal. */
  async unlessStopped<T>(work: Promise<T>): Promise<T> {
    const { promise: stopped, reject } = Promise.withResolvers<never>();
    const stop = (): void => reject(this.signal.reason);
    this.signal.addEventListener('abort', stop);
    if (this.signal.aborted) stop();
    try {
      return await Promise.race([work, stopped]);
    } finally {
      this.signal.removeEventListener('abort', stop);
    }
  }
}

async function askSource<T>(question: () => Promise<T>): Promise<T> {
  try {
    return await question();
  } catch (error) {
    throw new SourceFailure(error);
  }
}

/** The stored parts of a volume, several being read ahead. */
async function* blocksInOrder(source: VolumeSource, layout: Qcow2Layout, run: Run): AsyncGenerator<Buffer> {
  const pieces = piecesToRead(layout);
  const underWay: Promise<Buffer>[] = [];
  const readAhead = (): void => {
    while (underWay.length < readsInFlight) {
      const piece = pieces.next();
      if (piece.done) return;
      const block = readWhole(source, piece.value, run.signal);
      block.catch((error: unknown) => run.fail(error));
      underWay.push(block);
    }
  };
  readAhead();
  for (let next = underWay.shift(); next !== undefined; next = underWay.shift()) {
    const block = await run.unlessStopped(next);
    readAhead();
    yield block;
  }
}

interface Piece {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

function* piecesToRead(layout: Qcow2Layout): Generator<Piece> {
  const blockClusters = blockBytes / clusterBytes;
  for (const { first, end } of storedRuns(layout.extents)) {
    for (let cluster = first; cluster < end; cluster += blockClusters) {
      const offsetBytes = cluster * clusterBytes;
      const endBytes = Math.min(cluster + blockClusters, end) * clusterBytes;
      yield { offsetBytes, lengthBytes: Math.min(endBytes, layout.virtualSizeBytes) - offsetBytes };
    }
  }
}

async function readWhole(source: VolumeSource, piece: Piece, signal: AbortSignal): Promise<Buffer> {
  const { offsetBytes, lengthBytes } = piece;
  const block = await askSource(() => source.read(offsetBytes, lengthBytes, signal));
  if (block.length !== lengthBytes)
    throw new Error(`the source gave ${block.length} instead of ${lengthBytes} bytes at ${offsetBytes}`);
  return block;
}

/** A new file that grows at its end, is hashed meanwhile, and has holes where it is zero. */
class HashedFile {
  readonly #file: FileHandle;
  readonly #run: Run;
  readonly #hash = fileHasher('chunks');
  /** Those under way. None of them rejects: an error stops the run. */
  readonly #writes = new Set<Promise<void>>();
  #flush: Promise<void> = Promise.resolve();
  #flushedBytes = 0;
  #sizeBytes = 0;

  constructor(file: FileHandle, run: Run) {
    this.#file = file;
    this.#run = run;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Starts to write a block, and hashes it meanwhile. What is missing to a whole cluster is zero. */
  async append(block: Buffer): Promise<void> {
    while (this.#writes.size >= writesInFlight) await this.#run.unlessStopped(Promise.race(this.#writes));
    this.#run.signal.throwIfAborted();
    const write = this.#guard(writeSparse(this.#file, block, this.#sizeBytes));
    this.#writes.add(write);
    void write.then(() => this.#writes.delete(write));
    this.#hash.update(block);
    const paddingBytes = (clusterBytes - (block.length % clusterBytes)) % clusterBytes;
    this.#hash.update(zeros.subarray(0, paddingBytes));
    this.#sizeBytes += block.length + paddingBytes;
    if (this.#sizeBytes - this.#flushedBytes >= flushBytes) {
      await this.#run.unlessStopped(this.#flush);
      this.#flushedBytes = this.#sizeBytes;
      this.#flush = this.#guard(this.#file.datasync());
    }
  }

  /** Brings everything to the disk, with its owner and mode. */
  async finish({ ownership }: AddOptions): Promise<HashResult> {
    await this.#run.unlessStopped(Promise.all([...this.#writes, this.#flush]));
    this.#run.signal.throwIfAborted();
    await this.#file.truncate(this.#sizeBytes); // a hole at the end has not been written
    if (ownership !== undefined) {
      await this.#file.chown(ownership.uid, ownership.gid); // first: it clears set-id bits
      await this.#file.chmod(ownership.mode);
    }
    await this.#file.sync();
    return { sizeBytes: this.#sizeBytes, ...this.#hash.finish() };
  }

  /** The number of a closed file is given to the next one, so nothing may be writing to it any more. */
  async close(): Promise<void> {
    await Promise.all([...this.#writes, this.#flush]);
    await this.#file.close();
  }

  async #guard(work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (error) {
      this.#run.fail(error);
    }
  }
}

/** Writes a block into a new file, leaving out clusters of zeros. */
async function writeSparse(file: FileHandle, block: Buffer, position: number): Promise<void> {
  let start = 0;
  while (start < block.length) {
    const firstIsZero = isZero(block, start);
    let end = start + clusterBytes;
    while (end < block.length && isZero(block, end) === firstIsZero) end += clusterBytes;
    if (!firstIsZero) await writeFully(file, block.subarray(start, end), position + start);
    start = end;
  }
}

function isZero(block: Buffer, start: number): boolean {
  const piece = block.subarray(start, start + clusterBytes);
  return piece.equals(zeros.subarray(0, piece.length));
}

async function writeFully(file: FileHandle, data: Buffer, position: number): Promise<void> {
  let written = 0;
  while (written < data.length) {
    const { bytesWritten } = await file.write(data, written, data.length - written, position + written);
    written += bytesWritten;
  }
}
