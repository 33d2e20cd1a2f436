import { stat, statfs } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { nearestExisting } from '../../common/files.ts';
import type { Config } from '../../config/schema.ts';
import type { HostStatus } from './hostStatus.ts';

/** Room where jobs keep what they need for a while. */
export interface PlaceFigures {
  readonly path: string;
  readonly freeBytes: number;
}

/** More places than this are not looked at. */
const placesMax = 16;
/** A network mount whose server is gone must not keep anybody waiting. */
const patienceMs = 2000;

/**
 * Free room of the journal, of the RAM disk, and of the directories beside the images in which the last backups have
 * worked. A place that does not answer in time is left out, as is one that is on the same file system as one before.
 */
export async function placesOf(config: Config, { machines }: HostStatus): Promise<readonly PlaceFigures[]> {
  const { stateDir, ramDisk } = config.agent;
  // Their own directories are gone when jobs have ended: those above them stay.
  const worked = machines.flatMap(({ lastRun }) => (lastRun?.workDirectories ?? []).map(aboveJob));
  const paths = [...new Set([stateDir, ...(ramDisk === null ? [] : [ramDisk]), ...worked])];
  const looks = await Promise.all(paths.slice(0, placesMax).map((path) => withPatience(lookAt(path))));
  const devices = new Set<number>();
  return looks.flatMap((look) => {
    if (look === null || devices.has(look.device)) return [];
    devices.add(look.device);
    return [{ path: look.path, freeBytes: look.freeBytes }];
  });
}

/** `/images` of `/images/.stillpoint/JOB`, and `/retain` of `/retain/JOB`. */
function aboveJob(workDirectory: string): string {
  const parent = dirname(workDirectory);
  return parent.endsWith('/.stillpoint') ? dirname(parent) : parent;
}

async function lookAt(path: string): Promise<PlaceFigures & { readonly device: number }> {
  const there = await nearestExisting(path);
  const [{ dev: device }, { bavail, bsize }] = await Promise.all([stat(there), statfs(there)]);
  return { path, device, freeBytes: bavail * bsize };
}

/** null: it did not answer, or it failed; figures tell of what there is. */
async function withPatience<T>(look: Promise<T>): Promise<T | null> {
  const { promise: late, resolve } = Promise.withResolvers<null>();
  const timer = setTimeout(() => resolve(null), patienceMs);
  try {
    return await Promise.race([look, late]);
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error;
    return null;
  } finally {
    clearTimeout(timer);
  }
}

/** What the journal takes on its disk. */
export async function journalBytes(stateDir: string): Promise<number> {
  const names = ['journal.sqlite', 'journal.sqlite-wal', 'journal.sqlite-shm', 'journal.sqlite.reserve'];
  const sizes = await Promise.all(names.map((name) => sizeOf(join(stateDir, name))));
  return sizes.reduce((sum, size) => sum + size, 0);
}

async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return 0;
    throw error;
  }
}
