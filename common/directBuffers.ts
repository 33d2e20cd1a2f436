import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { isErrno } from './errors.ts';
import { removeUnfinished } from './files.ts';

/** The part of the global that is used; its types come with those of browsers only. */
declare const WebAssembly: {
  readonly Memory: new (size: {
    readonly initial: number;
    readonly maximum: number;
    readonly shared?: boolean;
  }) => {
    readonly buffer: ArrayBuffer | SharedArrayBuffer;
  };
};

const pageBytes = 64 * 1024;
/** What `O_DIRECT` wants addresses, offsets and lengths to be multiples of, on any device. */
export const directBlockBytes = 4096;
/** All memory that was given out here. */
const aligned = new WeakSet<ArrayBufferLike>();

/**
 * Buffers for `O_DIRECT`, which wants memory that is aligned: the one kind that a script can have is that of
 * WebAssembly, which begins at a page.
 *
 * @param sizeBytes multiple of 64 KiB
 */
export function directBuffers(count: number, sizeBytes: number): Buffer[] {
  return alignedBuffers(count, sizeBytes, false);
}

/** As `directBuffers`; all threads see them. */
export function sharedDirectBuffers(count: number, sizeBytes: number): Buffer[] {
  return alignedBuffers(count, sizeBytes, true);
}

/** Whether a write past the page cache may begin at the beginning of these bytes. */
export function isDirectBuffer({ buffer, byteOffset }: Uint8Array): boolean {
  return aligned.has(buffer) && byteOffset % directBlockBytes === 0;
}

function alignedBuffers(count: number, sizeBytes: number, shared: boolean): Buffer[] {
  const pages = (count * sizeBytes) / pageBytes;
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages, shared });
  aligned.add(buffer);
  return Array.from({ length: count }, (_, index) => Buffer.from(buffer, index * sizeBytes, sizeBytes));
}

/**
 * Creates a file that is written past the page cache of the host: what is not read again would only push out what
 * others need there, and getting memory for it costs more than the writing. Its writes must come from
 * `directBuffers`, at offsets and in lengths that are multiples of 4 KiB. Where the file system cannot do that it is
 * an ordinary file.
 *
 * @throws EEXIST, … of the system
 */
export async function createDirect(path: string, mode: number): Promise<FileHandle> {
  const ordinary = await open(path, 'wx', mode);
  try {
    return await openedDirect(path, ordinary);
  } catch (error) {
    await removeUnfinished(path);
    throw error;
  }
}

async function openedDirect(path: string, ordinary: FileHandle): Promise<FileHandle> {
  let direct: FileHandle | null;
  try {
    direct = await reopenDirect(path);
  } catch (error) {
    await ordinary.close();
    throw error;
  }
  if (direct === null) return ordinary;
  try {
    await ordinary.close();
    return direct;
  } catch (error) {
    await direct.close();
    throw error;
  }
}

/** Opens a file for writing past the page cache; `null` where the file system cannot do that. */
export async function reopenDirect(path: string): Promise<FileHandle | null> {
  try {
    return await open(path, constants.O_WRONLY | constants.O_DIRECT | constants.O_NOFOLLOW);
  } catch (error) {
    if (isDirectRefused(error)) return null;
    throw error;
  }
}

/** Whether a file system says that it cannot go past the page cache, on opening a file or when it is written to. */
export function isDirectRefused(error: unknown): boolean {
  return isErrno(error, 'EINVAL') || isErrno(error, 'ENOTSUP');
}
