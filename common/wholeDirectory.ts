import { randomBytes } from 'node:crypto';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fsyncDirectory } from './files.ts';

/**
 * Makes a directory of small files that is there with all of them or not at all, also after a power loss. Only its
 * owner can read it (0700, files 0600).
 *
 * @throws the system's errors; ENOTEMPTY or EEXIST when there is something under this name, which stays as it is
 */
export async function makeWholeDirectory(
  path: string,
  files: ReadonlyMap<string, string | Uint8Array>,
): Promise<void> {
  const parent = dirname(path);
  const temporary = join(parent, `.${basename(path)}.${randomBytes(8).toString('hex')}.tmp`);
  try {
    await mkdir(temporary, { mode: 0o700 });
    for (const [name, data] of files) await writeNewFile(join(temporary, name), data);
    await fsyncDirectory(temporary);
    await rename(temporary, path);
  } catch (error) {
    await removeUnfinishedDirectory(temporary);
    throw error;
  }
  await fsyncDirectory(parent);
}

async function writeNewFile(path: string, data: string | Uint8Array): Promise<void> {
  const file = await open(path, 'wx', 0o600);
  try {
    await file.writeFile(data);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** As `removeUnfinished` of files.ts: what has failed before is what counts, and the name tells what this is. */
async function removeUnfinishedDirectory(path: string): Promise<void> {
  try {
    await rm(path, { recursive: true, force: true });
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error;
  }
}
