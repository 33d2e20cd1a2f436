import { type FileHandle, open } from 'node:fs/promises';
import {
  directBlockBytes,
  isDirectBuffer,
  isDirectRefused,
  reopenDirect,
} from '../../common/directBuffers.ts';

/** Nobody writes to an object, its owner neither. */
const objectMode = 0o400;

/**
 * Writes a file that nobody knows yet, and brings it to the disk. Parts that are made for it go past the page cache:
 * packs are not read again soon, and would push out what the machines of this host have there.
 *
 * @throws EEXIST, ENOSPC, … of the system
 */
export async function writeNewFile(path: string, parts: readonly Buffer[]): Promise<void> {
  const isDirect = canGoDirectly(parts);
  // To be opened once more it must be writable.
  const file = await open(path, 'wx', isDirect ? 0o600 : objectMode);
  try {
    const written = isDirect ? await writeBlocks(path, parts) : 0;
    await writeBehind(file, parts, written);
    if (isDirect) await file.chmod(objectMode);
    // Before it has a name that counts: a name must never lead to bytes that a power loss takes away.
    await file.sync();
  } finally {
    await file.close();
  }
}

/** All parts begin, and all but the last one end, where a block does. */
function canGoDirectly(parts: readonly Buffer[]): boolean {
  const isWhole = parts.slice(0, -1).every(({ length }) => length % directBlockBytes === 0);
  const [first] = parts;
  return isWhole && first !== undefined && first.length >= directBlockBytes && parts.every(isDirectBuffer);
}

/** Writes whole blocks past the page cache, from the beginning on, and returns how many bytes that was possible for. */
async function writeBlocks(path: string, parts: readonly Buffer[]): Promise<number> {
  const file = await reopenDirect(path);
  if (file === null) return 0;
  let position = 0;
  try {
    for (const part of parts) {
      const lengthBytes = part.length - (part.length % directBlockBytes);
      const { bytesWritten } = await file.write(part, 0, lengthBytes, position);
      position += bytesWritten;
      // Where a part of it was taken, what follows does not begin at a block. Why, the ordinary way tells.
      if (bytesWritten < lengthBytes) break;
    }
  } catch (error) {
    // Some file systems refuse it here only.
    if (!isDirectRefused(error)) throw error;
  } finally {
    await file.close();
  }
  return position;
}

/** Writes what is behind the first so many bytes. */
async function writeBehind(file: FileHandle, parts: readonly Buffer[], skipBytes: number): Promise<void> {
  let start = 0;
  for (const part of parts) {
    for (let done = Math.max(0, skipBytes - start); done < part.length; ) {
      const { bytesWritten } = await file.write(part, done, part.length - done, start + done);
      if (bytesWritten === 0) throw new Error('a file takes no more bytes, and does not say why');
      done += bytesWritten;
    }
    start += part.length;
  }
}
