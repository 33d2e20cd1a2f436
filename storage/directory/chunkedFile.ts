import type { FileHandle } from 'node:fs/promises';
import { chunkBytes, chunkSha256, chunkSha256Beside, sumsOf } from '../../common/chunkSums.ts';
import type { HashResult } from '../../common/copy.ts';
import { clusterBytes } from '../../common/qcow2/layout.ts';
import type { AddOptions } from '../storage.ts';
import type { Run } from '../run.ts';

/**
 * What was written is brought to the disk in pieces of this size: one fsync at the end of a large volume would
 * keep silent for so long that the storage counts as unreachable.
 */
const flushBytes = 256 * 1024 * 1024;
/** What is written at once: several of the chunks that have digests. */
export const pieceBytes = 4 * chunkBytes;
const zeros = Buffer.alloc(pieceBytes);

/**
 * A new file that is written in pieces, several at a time and in any order, and has holes where it is zero. Its chunks
 * are hashed on the way.
 */
export class ChunkedFile {
  readonly #file: FileHandle;
  readonly #run: Run;
  readonly #sizeBytes: number;
  readonly #sums: string[] = [];
  /** Those under way. None of them rejects: an error stops the run. */
  readonly #writes = new Set<Promise<void>>();
  #flush: Promise<void> = Promise.resolve();
  #unflushedBytes = 0;

  constructor(file: FileHandle, sizeBytes: number, run: Run) {
    this.#file = file;
    this.#sizeBytes = sizeBytes;
    this.#run = run;
  }

  /** Writes and hashes one piece; all but the last have `pieceBytes`. */
  async write(index: number, piece: Buffer): Promise<void> {
    const empty = piece.equals(zeros.subarray(0, piece.length));
    // Both on threads of their own.
    const digests = empty ? zeroDigests(piece) : Promise.all(chunksOf(piece).map(chunkSha256Beside));
    if (!empty) await this.#tracked(writeSparse(this.#file, piece, index * pieceBytes));
    this.#run.signal.throwIfAborted();
    const sums = await digests;
    for (const [at, sum] of sums.entries()) this.#sums[(index * pieceBytes) / chunkBytes + at] = sum;
    if (!empty) await this.#flushSometimes(piece.length);
  }

  /** Brings everything to the disk, with its owner and mode. */
  async finish({ ownership }: AddOptions): Promise<HashResult> {
    await this.#run.unlessStopped(this.#flush);
    this.#run.signal.throwIfAborted();
    await this.#file.truncate(this.#sizeBytes); // a hole at the end has not been written
    if (ownership !== undefined) {
      await this.#file.chown(ownership.uid, ownership.gid); // first: it clears set-id bits
      await this.#file.chmod(ownership.mode);
    }
    await this.#file.sync();
    return { sizeBytes: this.#sizeBytes, ...sumsOf(this.#sums) };
  }

  /** The number of a closed file is given to the next one, so nothing may be writing to it any more. */
  async close(): Promise<void> {
    await Promise.all(this.#writes);
    await this.#file.close();
  }

  async #flushSometimes(writtenBytes: number): Promise<void> {
    this.#unflushedBytes += writtenBytes;
    if (this.#unflushedBytes < flushBytes) return;
    this.#unflushedBytes = 0;
    const before = this.#flush;
    this.#flush = this.#tracked(before.then(() => this.#file.datasync()));
    await this.#run.unlessStopped(before);
  }

  /** Never rejects: nobody may be waiting any more when it ends. */
  async #tracked(work: Promise<void>): Promise<void> {
    const ended = work.catch((error: unknown) => this.#run.fail(error));
    this.#writes.add(ended);
    await ended;
    this.#writes.delete(ended);
  }
}

function chunksOf(piece: Buffer): readonly Buffer[] {
  const chunks: Buffer[] = [];
  for (let start = 0; start < piece.length; start += chunkBytes)
    chunks.push(piece.subarray(start, start + chunkBytes));
  return chunks;
}

function zeroDigests(piece: Buffer): readonly string[] {
  return chunksOf(piece).map(chunkSha256);
}

/** Writes a piece into a new file, leaving out clusters of zeros. */
async function writeSparse(file: FileHandle, chunk: Buffer, position: number): Promise<void> {
  let start = 0;
  while (start < chunk.length) {
    const firstIsZero = isZero(chunk, start);
    let end = start + clusterBytes;
    while (end < chunk.length && isZero(chunk, end) === firstIsZero) end += clusterBytes;
    if (!firstIsZero) await writeFully(file, chunk.subarray(start, end), position + start);
    start = end;
  }
}

function isZero(chunk: Buffer, start: number): boolean {
  const piece = chunk.subarray(start, start + clusterBytes);
  return piece.equals(zeros.subarray(0, piece.length));
}

async function writeFully(file: FileHandle, data: Buffer, position: number): Promise<void> {
  let written = 0;
  while (written < data.length) {
    const { bytesWritten } = await file.write(data, written, data.length - written, position + written);
    written += bytesWritten;
  }
}
