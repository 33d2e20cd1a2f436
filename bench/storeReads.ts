import { once } from 'node:events';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { readKeyFile } from '../storage/repository/keyFile.ts';
import { FileBackend } from '../storage/backends/fileBackend.ts';
import { listBackups } from '../storage/repository/backups.ts';
import { Repository } from '../storage/repository/repository.ts';
import type { Lab } from '../test/lab/lab.ts';
import { readBeside, type ReadFigures } from './nbdReads.ts';
import { summarize } from './statistics.ts';
import type { StoreBench } from './storeBench.ts';
import { mib, writerBytes } from './storeImage.ts';
import { keyFileOf, type Stillpoint } from './storeTools.ts';

const server = join(import.meta.dirname, '../agent/serveVolume.ts');
/** Less than the cache of a server holds. */
const readBytes = 48 * mib;

/** Reads through the server of an instant restore, of the newest backup, when it has read them before. */
export async function measureReads({ lab, rounds }: StoreBench, ours: Stillpoint): Promise<object> {
  const figures: ReadFigures[] = [];
  await withExport(lab, ours, async (_url, socketPath) => {
    for (let round = 0; round < rounds; round += 1)
      figures.push(await readBeside({ socketPath, offsetBytes: writerBytes, lengthBytes: readBytes }));
  });
  const summary = (of: keyof ReadFigures): object =>
    summarize(
      figures.map((figure) => figure[of]),
      0,
    );
  return {
    randomReadsPerSecond: summary('oneAtATime'),
    randomReadsPerSecondOf16: summary('sixteenAtATime'),
    mibPerSecond: summary('mibPerSecond'),
  };
}

/** Serves the volume of the newest backup, in a process of its own, as long as `work` takes. */
export async function withExport(
  lab: Lab,
  ours: Stillpoint,
  work: (url: string, socketPath: string) => Promise<void>,
): Promise<void> {
  const socketPath = join(lab.root, 'tmp', 'export.sock');
  const root = await newestRoot(ours);
  const args = [server, socketPath, 'vda', ours.agent.configFile, 'vault', root, '0', '0'];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(child, 'exit');
  try {
    await Promise.race([
      once(child.stdout, 'data'),
      ended.then(([code]) => {
        throw new Error(`the server of the export has ended with ${code}`);
      }),
    ]);
    await work(`nbd+unix:///vda?socket=${socketPath}`, socketPath);
  } finally {
    child.kill();
    await ended;
  }
}

async function newestRoot({ directory }: Stillpoint): Promise<string> {
  const key = await readKeyFile(keyFileOf(directory));
  const { context } = await Repository.open(new FileBackend(directory), key);
  const root = (await listBackups(context)).at(-1)?.manifest?.volumes[0]?.content.root;
  if (root === undefined) throw new Error(`there is no backup in ${directory}`);
  return root;
}
