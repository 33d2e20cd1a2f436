import { constants } from 'node:fs';
import { chmod, copyFile, open } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Bandwidth } from './bandwidth.ts';
import { type DigestKind, fileHasher } from './chunkSums.ts';
import { createDirect } from './directBuffers.ts';
import { isErrno } from './errors.ts';
import { fsyncDirectory, removeUnfinished } from './files.ts';
import { hashInPieces, largePieceBytes, openDirect, type ReadOptions } from './pieces.ts';
import { ReadBack } from './readBack.ts';

/** Bytes read at once; two of them are in flight, so that reading and hashing overlap. */
const blockBytes = 4 * 1024 * 1024;
/** Somebody waits for what is read back: each piece goes three ways, and the disk is to have work on all of them. */
const piecesReadBack = 6;
/** Zeros of at least this length become holes in a copy. */
const holeBytes = 64 * 1024;
const zeros = Buffer.alloc(holeBytes);

export interface FileDigest {
  readonly sizeBytes: number;
  /** SHA-256 in lower-case hexadecimal, of the kind that was asked for. */
  readonly sha256: string;
}

/** Options of everything that hashes a whole file. */
export interface HashOptions extends ReadOptions {
  /** `whole` unless told. */
  readonly digest?: DigestKind | undefined;
}

export interface HashResult extends FileDigest {
  /** The list that a digest of kind `chunks` is made of. */
  readonly sums: string | null;
}

export interface CopyOptions extends HashOptions {
  readonly from: string;
  /** Must not exist. */
  readonly to: string;
  /** Permission bits of the copy; those of the source unless told. */
  readonly mode?: number | undefined;
  /** Of kind `chunks` only: every piece that is copied is read once more from the copy, and compared. */
  readonly readBack?: boolean | undefined;
}

export interface CopyResult extends HashResult {
  readonly method: 'reflink' | 'copy';
  /** Whether the copy read back as it was written; `null` when that was not looked at. */
  readonly readBack: 'same' | 'different' | null;
}

/** Opens a regular file for reading; a symbolic link in the last component is refused (ELOOP). */
export async function openRegular(path: string): Promise<FileHandle> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  return requireRegular(await open(path, flags), path);
}

async function requireRegular(file: FileHandle, path: string): Promise<FileHandle> {
  try {
    if (!(await file.stat()).isFile()) throw new Error(`${path} is not a regular file`);
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Whatever is hashed in pieces is read past the page cache. */
async function openToRead(path: string, { digest }: HashOptions): Promise<FileHandle> {
  return digest === 'chunks' ? requireRegular(await openDirect(path), path) : openRegular(path);
}

/** Fills as much of a buffer as the file has at this position. */
async function readFully(file: FileHandle, buffer: Buffer, position: number): Promise<Buffer> {
  let filled = 0;
  while (filled < buffer.length) {
    const { bytesRead } = await file.read(buffer, filled, buffer.length - filled, position + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return buffer.subarray(0, filled);
}

/** Begins to read a block. It may fail long before anybody waits for it, which must not end the whole process. */
function readAhead(file: FileHandle, buffer: Buffer, position: number): Promise<Buffer> {
  const block = readFully(file, buffer, position);
  block.catch(() => undefined);
  return block;
}

/**
 * Hands every block of a file to `use`, in order, while the next one is being read. The block is overwritten
 * after `use` has settled.
 */
async function forEachBlock(
  file: FileHandle,
  use: (block: Buffer, position: number) => Promise<void> | void,
  options: ReadOptions,
): Promise<void> {
  const buffers: [Buffer, Buffer] = [Buffer.allocUnsafe(blockBytes), Buffer.allocUnsafe(blockBytes)];
  const bandwidth = new Bandwidth(options.limit);
  let position = 0;
  let turn: 0 | 1 = 0;
  let next = readAhead(file, buffers[turn], position);
  for (;;) {
    const block = await next;
    options.signal?.throwIfAborted();
    if (block.length === 0) {
      await bandwidth.take(0, options.signal);
      return;
    }
    // Before more is read, so that nothing is when it is held back.
    await options.throttle?.take(block.length, options.signal);
    turn = turn === 0 ? 1 : 0;
    next = readAhead(file, buffers[turn], position + block.length);
    try {
      await bandwidth.take(block.length, options.signal);
      await use(block, position);
    } catch (error) {
      await next.catch((readError: unknown) => readError); // the file must not be closed under a read
      throw error;
    }
    position += block.length;
    options.onProgress?.(position);
  }
}

/**
 * Digest and length of a regular file (links are refused). Memory: two blocks of 4 MiB, or three for a digest of kind
 * `chunks`, which is read past the page cache.
 *
 * @throws the reason of `signal`, or the system's error.
 */
export async function hashFile(path: string, options: HashOptions = {}): Promise<HashResult> {
  const file = await openToRead(path, options);
  try {
    return await hashHandle(file, options);
  } finally {
    await file.close();
  }
}
async function hashHandle(file: FileHandle, options: HashOptions): Promise<HashResult> {
  if (options.digest === 'chunks') return hashInPieces(file, options);
  const hasher = fileHasher(options.digest ?? 'whole');
  let sizeBytes = 0;
  await forEachBlock(
    file,
    (block) => {
      hasher.update(block);
      sizeBytes += block.length;
    },
    options,
  );
  return { sizeBytes, ...hasher.finish() };
}

/**
 * Copies a regular file under a name that must be free; data and name are on the disk when it returns. Shares
 * the blocks where the file system can (reflink), otherwise copies and leaves zeros out as holes. Hashes
 * every byte in both cases. Removes its own unfinished target when it fails or is aborted.
 *
 * @throws EEXIST, ENOSPC, … of the system, or the reason of `signal`.
 */
export async function copyFileDurable(options: CopyOptions): Promise<CopyResult> {
  const { from, to } = options;
  options.signal?.throwIfAborted();
  const source = await openToRead(from, options);
  try {
    const mode = options.mode ?? (await source.stat()).mode & 0o7777;
    const result = (await reflink(options, mode)) ?? (await streamCopy(source, options, mode));
    await fsyncDirectory(dirname(to));
    return result;
  } finally {
    await source.close();
  }
}

/** What a file system answers that cannot share blocks between these two places. */
const cannotReflink = ['ENOTSUP', 'EOPNOTSUPP', 'EXDEV', 'EINVAL', 'ENOTTY', 'ENOSYS', 'ETXTBSY'];

/**
 * Makes a file that shares all blocks of another (reflink), where the file system can. Nothing is synced.
 * @returns false where it cannot; then there is no file
 * @throws EEXIST, ENOENT, ENOSPC, … of the system
 */
export async function cloneFile(from: string, to: string, mode: number): Promise<boolean> {
  try {
    await copyFile(from, to, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL);
  } catch (error) {
    if (cannotReflink.some((code) => isErrno(error, code))) return false;
    throw error;
  }
  try {
    await chmod(to, mode);
    return true;
  } catch (error) {
    await removeUnfinished(to);
    throw error;
  }
}

async function reflink(options: CopyOptions, mode: number): Promise<CopyResult | null> {
  if (!(await cloneFile(options.from, options.to, mode))) return null;
  try {
    const copy = await open(options.to, 'r+');
    try {
      await copy.sync();
      return { ...(await hashHandle(copy, options)), method: 'reflink', readBack: null };
    } finally {
      await copy.close();
    }
  } catch (error) {
    await removeUnfinished(options.to);
    throw error;
  }
}

async function streamCopy(source: FileHandle, options: CopyOptions, mode: number): Promise<CopyResult> {
  if (options.digest === 'chunks') return copyInPieces(source, options, mode);
  const hasher = fileHasher(options.digest ?? 'whole');
  let sizeBytes = 0;
  const copy = await open(options.to, 'wx', 0o600);
  try {
    try {
      await forEachBlock(
        source,
        async (block, position) => {
          hasher.update(block);
          await writeSparse(copy, block, position);
          sizeBytes += block.length;
        },
        options,
      );
      await copy.truncate(sizeBytes); // a hole at the end has not been written
      await copy.chmod(mode);
      await copy.sync();
    } finally {
      await copy.close();
    }
  } catch (error) {
    await removeUnfinished(options.to);
    throw error;
  }
  return { sizeBytes, ...hasher.finish(), method: 'copy', readBack: null };
}

/**
 * The same, several pieces at a time and past the page cache. What is read back is read as soon as it was written:
 * what comes from the device does so before and after the sync, and neither disk nor processor waits for the other.
 */
async function copyInPieces(source: FileHandle, options: CopyOptions, mode: number): Promise<CopyResult> {
  const copy = await createDirect(options.to, 0o600);
  try {
    try {
      const { pieceBytes = largePieceBytes } = options;
      await using back = options.readBack
        ? await ReadBack.open(options.to, { pieces: piecesReadBack, pieceBytes })
        : null;
      const how = back === null ? options : { ...options, piecesInFlight: piecesReadBack };
      const hashed = await hashInPieces(source, how, async (padded, position) => {
        await writeSparse(copy, padded, position);
        await back?.compare(padded, position);
      });
      await copy.truncate(hashed.sizeBytes); // a hole at the end has not been written; what was filled up has
      await copy.chmod(mode);
      await copy.sync();
      const readBack = back === null ? null : back.isSame ? 'same' : 'different';
      return { ...hashed, method: 'copy', readBack };
    } finally {
      await copy.close();
    }
  } catch (error) {
    await removeUnfinished(options.to);
    throw error;
  }
}

/** Writes a block into a new file, leaving out stretches of zeros. */
async function writeSparse(file: FileHandle, block: Buffer, position: number): Promise<void> {
  let start = 0;
  while (start < block.length) {
    const firstIsZero = isZero(block, start);
    let end = start;
    while (end < block.length && isZero(block, end) === firstIsZero) end += holeBytes;
    end = Math.min(end, block.length);
    if (!firstIsZero) await writeFully(file, block.subarray(start, end), position + start);
    start = end;
  }
}

function isZero(block: Buffer, start: number): boolean {
  const piece = block.subarray(start, start + holeBytes);
  return piece.equals(piece.length === holeBytes ? zeros : zeros.subarray(0, piece.length));
}

/** Writes all of the data; one write(2) may take less. */
export async function writeFully(file: FileHandle, data: Buffer, position: number): Promise<void> {
  let written = 0;
  while (written < data.length) {
    const { bytesWritten } = await file.write(data, written, data.length - written, position + written);
    written += bytesWritten;
  }
}
