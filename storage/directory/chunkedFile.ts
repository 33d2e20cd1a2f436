import { webcrypto } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { chunkBytes, chunkSha256, sumsOf } from '../../common/chunkSums.ts';
import type { HashResult } from '../../common/copy.ts';
import { clusterBytes } from '../../common/qcow2/layout.ts';
import type { AddOptions } from '../storage.ts';
import type { Run } from './run.ts';

/**
 * What was written is brought to the disk in pieces of this size: one fsync at the end of a large volume would
 * keep silent for so long that the storage counts as unreachable.
 */
const flushBytes = 256 * 1024 * 1024;
const zeros = Buffer.alloc(chunkBytes);

/**
 * A new file that is written and hashed in chunks, several at a time and in any order, and has holes where it is
 * zero.
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

  /** Writes and hashes one chunk; all but the last have `chunkBytes`. */
  async write(index: number, chunk: Buffer): Promise<void> {
    if (chunk.equals(zeros.subarray(0, chunk.length))) {
      this.#sums[index] = chunkSha256(chunk);
      return;
    }
    // Both on threads of their own; the digest works on a copy.
    const digest = webcrypto.subtle.digest('SHA-256', chunk);
    await this.#tracked(writeSparse(this.#file, chunk, index * chunkBytes));
    this.#run.signal.throwIfAborted();
    this.#sums[index] = Buffer.from(await digest).toString('hex');
    await this.#flushSometimes(chunk.length);
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

/** Writes a chunk into a new file, leaving out clusters of zeros. */
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
