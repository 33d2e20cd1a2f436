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
  }) => {
    readonly buffer: ArrayBuffer;
  };
};

const pageBytes = 64 * 1024;

/**
 * Buffers for `O_DIRECT`, which wants memory that is aligned: the one kind that a script can have is that of
 * WebAssembly, which begins at a page.
 *
 * @param sizeBytes multiple of 64 KiB
 */
export function directBuffers(count: number, sizeBytes: number): Buffer[] {
  const pages = (count * sizeBytes) / pageBytes;
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages });
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
  let direct: FileHandle;
  try {
    direct = await open(path, constants.O_WRONLY | constants.O_DIRECT | constants.O_NOFOLLOW);
  } catch (error) {
    if (isErrno(error, 'EINVAL')) return ordinary;
    await ordinary.close();
    throw error;
  }
  try {
    await ordinary.close();
    return direct;
  } catch (error) {
    await direct.close();
    throw error;
  }
}
