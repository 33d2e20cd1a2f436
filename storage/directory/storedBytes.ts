import type { Dirent } from 'node:fs';
import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { isErrno } from '../../common/errors.ts';

const blockBytes = 512;

/** What a directory takes with all below it, as du(1) says: blocks that files share count in each of them. */
export async function storedBytesBelow(directory: string): Promise<number> {
  let bytes = 0;
  for (const entry of await entriesOf(directory)) {
    const path = join(directory, entry.name);
    bytes += entry.isDirectory() ? await storedBytesBelow(path) : await blocksOf(path);
  }
  return bytes;
}

/** What a file takes; nothing when it is gone: others work here, too. */
export async function blocksOf(path: string): Promise<number> {
  try {
    return (await lstat(path)).blocks * blockBytes;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return 0;
    throw error;
  }
}

async function entriesOf(directory: string): Promise<readonly Dirent[]> {
  try {
    return await readdir(directory, { withFileTypes: true });
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}
