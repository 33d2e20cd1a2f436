import { randomBytes } from 'node:crypto';
import { readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cloneFile } from '../../common/copy.ts';
import { lstatOrNull } from './entries.ts';

/** Larger than what a file system may keep beside a file's name, where there is nothing to share. */
const trialBytes = 64 * 1024;
const trialName = /^\.reflink-[0-9a-f]{16}(\.clone)?$/;
/** What is older belongs to nobody any more. */
const trialMs = 3_600_000;

/** Whether files of a directory can share blocks: only a try can tell. Leaves nothing behind. */
export async function canReflink(directory: string): Promise<boolean> {
  const trial = join(directory, `.reflink-${randomBytes(8).toString('hex')}`);
  const clone = `${trial}.clone`;
  try {
    await writeFile(trial, randomBytes(trialBytes), { flag: 'wx', mode: 0o600 });
    return await cloneFile(trial, clone, 0o600);
  } finally {
    await rm(clone, { force: true });
    await rm(trial, { force: true });
  }
}

/** Removes what killed tries have left. */
export async function removeReflinkTrials(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    if (!trialName.test(name)) continue;
    const path = join(directory, name);
    const status = await lstatOrNull(path);
    if (status !== null && status.mtimeMs < Date.now() - trialMs) await rm(path, { force: true });
  }
}
