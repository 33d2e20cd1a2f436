import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { isErrno } from '../../common/errors.ts';
import { fsyncDirectory } from '../../common/files.ts';
import { encodeMachineName } from '../../storage/directory/names.ts';

/** What monitoring may read: it is not secret. */
const fileMode = 0o644;
const directoryMode = 0o755;

const markerSchema = z.object({ job: z.string() });

/** What a marker says. All times RFC 3339. */
export interface SnapshottingMarker {
  readonly machine: string;
  readonly job: string;
  readonly since: string;
  /** Later than that it means nothing any more, whoever has left it. */
  readonly untilAtMost: string;
}

/** Where the markers are. */
export function markerDirectory(runDirectory: string): string {
  return join(runDirectory, 'snapshotting');
}

/** The marker of a machine, whose name is percent-encoded as in a storage, and what becomes it. */
function filesOf(
  runDirectory: string,
  machineName: string,
): { readonly file: string; readonly next: string } {
  const directory = markerDirectory(runDirectory);
  const name = encodeMachineName(machineName);
  return { file: join(directory, name), next: join(directory, `.${name}.next`) };
}

/** Says that a machine is being snapshotted, before it is. @throws the system's errors */
export async function raiseMarker(runDirectory: string, marker: SnapshottingMarker): Promise<void> {
  const directory = markerDirectory(runDirectory);
  await mkdir(directory, { recursive: true, mode: directoryMode });
  // There is one job of a machine at a time, so the name is known by which a killed one is cleared up.
  const { file, next } = filesOf(runDirectory, marker.machine);
  const writing = await open(next, 'w', fileMode);
  try {
    await writing.writeFile(`${JSON.stringify(marker)}\n`);
    await writing.chmod(fileMode);
    await writing.sync();
  } finally {
    await writing.close();
  }
  await rename(next, file);
  await fsyncDirectory(directory);
}

/** Takes it away again; one that is not there is fine. */
export async function lowerMarker(runDirectory: string, machineName: string): Promise<void> {
  const { file, next } = filesOf(runDirectory, machineName);
  await rm(file, { force: true });
  await rm(next, { force: true });
}

/**
 * Takes away what no job can take away any more, such as after the loss of a journal.
 * @param isUnfinished whether a job will take its marker away by itself
 * @returns the names of the files
 */
export async function clearMarkers(
  runDirectory: string,
  isUnfinished: (jobId: string) => boolean,
): Promise<readonly string[]> {
  const directory = markerDirectory(runDirectory);
  const cleared: string[] = [];
  for (const name of await namesIn(directory)) {
    const job = await jobOf(join(directory, name));
    if (job !== undefined && isUnfinished(job)) continue;
    await rm(join(directory, name), { force: true });
    cleared.push(name);
  }
  return cleared;
}

async function namesIn(directory: string): Promise<readonly string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}

/** `undefined` for what is no marker. */
async function jobOf(file: string): Promise<string | undefined> {
  try {
    return markerSchema.parse(JSON.parse(await readFile(file, 'utf8'))).job;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof z.ZodError || isErrno(error, 'ENOENT'))
      return undefined;
    throw error;
  }
}
