import { createHash, hash, webcrypto } from 'node:crypto';
import type { Hash } from 'node:crypto';
import { availableParallelism } from 'node:os';

/*
 * The digest of a volume must be known after an increment without reading all of its file again, so it is the
 * SHA-256 of a list: the SHA-256 of every MiB of the file, one line each, as
 * `split -b 1M --filter=sha256sum FILE` prints them.
 */

/** What one line of the list covers; the last one of a file may cover less. */
export const chunkBytes = 1024 * 1024;

/** A file beyond this would have a list that is longer than a string can be. */
export const summedBytesMax = 7 * 1024 ** 4;

const lineEnd = '  -\n';
/** Length of one line. */
export const sumsLineBytes = 64 + lineEnd.length;

const zeros = Buffer.alloc(chunkBytes);
const zeroChunk = hash('sha256', zeros, 'hex');

/** `whole`: SHA-256 of a file's bytes. `chunks`: SHA-256 of the list of its chunks' digests. */
export type DigestKind = 'whole' | 'chunks';

/** Takes the bytes of a file in their order. */
export interface FileHasher {
  update(block: Buffer): void;
  finish(): {
    /** The file's digest in lower-case hexadecimal. */
    readonly sha256: string;
    /** The list of its chunks' digests; `null` for a digest of kind `whole`. */
    readonly sums: string | null;
  };
}

export function fileHasher(kind: DigestKind): FileHasher {
  if (kind === 'chunks') return new ChunkHasher();
  const whole = createHash('sha256');
  return {
    update: (block) => void whole.update(block),
    finish: () => ({ sha256: whole.digest('hex'), sums: null }),
  };
}

/** SHA-256 of one chunk. Zeros, as in a hole, are only compared. */
export function chunkSha256(chunk: Buffer): string {
  return chunk.length === chunkBytes && chunk.equals(zeros) ? zeroChunk : hash('sha256', chunk, 'hex');
}

/** Those that are made beside, and those that wait for their turn. */
let digestsUnderWay = 0;
const digestsWaiting: (() => void)[] = [];
/** More of them at a time are not faster, and each has a copy of its chunk. */
const digestsAtOnce = Math.max(2, availableParallelism());

/** The same, made on another thread. The chunk must stay as it is until then. */
export async function chunkSha256Beside(chunk: Buffer): Promise<string> {
  if (chunk.length === chunkBytes && chunk.equals(zeros)) return zeroChunk;
  if (digestsUnderWay >= digestsAtOnce)
    await new Promise<void>((resolve) => void digestsWaiting.push(resolve));
  digestsUnderWay += 1;
  try {
    return Buffer.from(await webcrypto.subtle.digest('SHA-256', chunk)).toString('hex');
  } finally {
    digestsUnderWay -= 1;
    digestsWaiting.shift()?.();
  }
}

/** The list as it is stored. */
export function formatSums(sums: readonly string[]): string {
  return sums.map((sum) => `${sum}${lineEnd}`).join('');
}

/** The digests of a list, or `null` for anything but a whole list. */
export function parseSums(text: string): readonly string[] | null {
  const lines = text.split('\n');
  if (lines.pop() !== '') return null;
  if (!lines.every((line) => /^[0-9a-f]{64} {2}-$/.test(line))) return null;
  return lines.map((line) => line.slice(0, 64));
}

/** Length of the list of a file of this size. */
export function sumsSizeBytes(fileSizeBytes: number): number {
  return Math.ceil(fileSizeBytes / chunkBytes) * sumsLineBytes;
}

class ChunkHasher implements FileHasher {
  readonly #sums: string[] = [];
  /** Of the chunk that has begun; `null` while all of it was zero. */
  #hash: Hash | null = null;
  #filledBytes = 0;

  update(block: Buffer): void {
    let start = 0;
    while (start < block.length) {
      const piece = block.subarray(start, start + chunkBytes - this.#filledBytes);
      if (piece.length === chunkBytes) this.#sums.push(chunkSha256(piece));
      else this.#append(piece);
      start += piece.length;
    }
  }

  #append(piece: Buffer): void {
    if (this.#hash === null && !piece.equals(zeros.subarray(0, piece.length)))
      this.#hash = createHash('sha256').update(zeros.subarray(0, this.#filledBytes));
    this.#hash?.update(piece);
    this.#filledBytes += piece.length;
    if (this.#filledBytes === chunkBytes) this.#endChunk();
  }

  #endChunk(): void {
    this.#sums.push(this.#hash?.digest('hex') ?? chunkSha256(zeros.subarray(0, this.#filledBytes)));
    this.#hash = null;
    this.#filledBytes = 0;
  }

  finish(): { readonly sha256: string; readonly sums: string } {
    if (this.#filledBytes > 0) this.#endChunk();
    return sumsOf(this.#sums);
  }
}

/** The digest of a file whose chunks have these digests, and its list. */
export function sumsOf(chunks: readonly string[]): { readonly sha256: string; readonly sums: string } {
  const sums = formatSums(chunks);
  return { sha256: hash('sha256', sums, 'hex'), sums };
}
