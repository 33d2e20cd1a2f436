import { constants } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import { Bandwidth, type BandwidthLimit } from './bandwidth.ts';
import { chunkBytes, chunkSha256Beside, sumsOf } from './chunkSums.ts';
import { directBlockBytes, directBuffers, isDirectRefused } from './directBuffers.ts';
import type { Throttle } from './throttle.ts';

/** Bytes read at once unless told, and how many pieces are read, hashed and written at a time: 12 MiB of memory. */
export const largePieceBytes = 4 * chunkBytes;
const piecesInFlight = 3;

/** Options of everything that goes through a whole file. */
export interface ReadOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called now and then with the bytes done so far. */
  readonly onProgress?: ((bytesDone: number) => void) | undefined;
  /** What goes through is held to it, also when it is changed meanwhile. */
  readonly limit?: BandwidthLimit | undefined;
  /** Passed before each piece. */
  readonly throttle?: Throttle | undefined;
  /** Bytes read at once, a multiple of a chunk: small pieces take less memory, large ones less time. */
  readonly pieceBytes?: number | undefined;
  /** So many pieces are worked on at a time; 3 unless told. */
  readonly piecesInFlight?: number | undefined;
}

/** What goes through a whole file in pieces leaves the list of its chunks' digests. */
export interface PiecesResult {
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly sums: string;
}

/**
 * Opens a file for reading past the page cache, which a large file would only push others out of; where the file
 * system cannot do that, as any other. A symbolic link in the last component is refused (ELOOP).
 */
export async function openDirect(path: string): Promise<FileHandle> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  try {
    return await open(path, flags | constants.O_DIRECT);
  } catch (error) {
    if (!isDirectRefused(error)) throw error;
    return open(path, flags);
  }
}

/**
 * Reads a regular file in pieces, several at a time, and hashes its chunks on other threads. Waits for everything
 * that is under way before it settles.
 *
 * @param use what is done with each piece beside that, in any order; its length is that of the piece, and behind it
 *   there are zeros up to a multiple of 4 KiB
 * @throws the reason of `signal`, the system's error, or that of `use`
 */
export async function hashInPieces(
  file: FileHandle,
  options: ReadOptions,
  use: (padded: Buffer, position: number) => Promise<void> = async () => {},
): Promise<PiecesResult> {
  const { size } = await file.stat();
  const { pieceBytes = largePieceBytes } = options;
  const sums: string[] = [];
  const buffers = directBuffers(options.piecesInFlight ?? piecesInFlight, pieceBytes);
  const underWay = new Set<Promise<void>>();
  const failures: unknown[] = [];
  const bandwidth = new Bandwidth(options.limit);
  let doneBytes = 0;
  const work = async (buffer: Buffer, position: number): Promise<void> => {
    const piece = await readPiece(file, buffer, position, Math.min(pieceBytes, size - position));
    const hashing = hashChunks(piece, position / chunkBytes, sums);
    await use(buffer.subarray(0, Math.ceil(piece.length / directBlockBytes) * directBlockBytes), position);
    await hashing;
    options.signal?.throwIfAborted();
    doneBytes += piece.length;
    options.onProgress?.(doneBytes);
  };
  try {
    for (let position = 0; position < size && failures.length === 0; position += pieceBytes) {
      await bandwidth.take(Math.min(pieceBytes, size - position), options.signal);
      await options.throttle?.take(Math.min(pieceBytes, size - position), options.signal);
      options.signal?.throwIfAborted();
      while (buffers.length === 0) await Promise.race(underWay);
      const buffer = buffers.pop();
      if (buffer === undefined || failures.length > 0) break;
      const ended = work(buffer, position)
        .catch((error: unknown) => void failures.push(error))
        .finally(() => {
          buffers.push(buffer);
          underWay.delete(ended);
        });
      underWay.add(ended);
    }
    if (failures.length === 0) await bandwidth.take(0, options.signal);
  } finally {
    await Promise.all(underWay);
  }
  if (failures.length > 0) throw failures[0];
  return { sizeBytes: size, ...sumsOf(sums) };
}

async function readPiece(
  file: FileHandle,
  buffer: Buffer,
  position: number,
  lengthBytes: number,
): Promise<Buffer> {
  let filled = 0;
  while (filled < lengthBytes) {
    // The whole buffer: a length that is no multiple of a block is refused past the page cache.
    const { bytesRead } = await file.read(buffer, filled, buffer.length - filled, position + filled);
    if (bytesRead === 0) throw new Error(`a file ends at ${position + filled} while it is read`);
    filled += bytesRead;
  }
  buffer.fill(0, lengthBytes);
  return buffer.subarray(0, lengthBytes);
}

async function hashChunks(piece: Buffer, first: number, sums: string[]): Promise<void> {
  const hashing: Promise<string>[] = [];
  for (let start = 0; start < piece.length; start += chunkBytes)
    hashing.push(chunkSha256Beside(piece.subarray(start, start + chunkBytes)));
  for (const [index, sum] of (await Promise.all(hashing)).entries()) sums[first + index] = sum;
}
