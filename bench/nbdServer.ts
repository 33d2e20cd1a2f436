/**
 * npm run bench -- nbdServer [ROUNDS]: what our NBD server gives to a client that has a process of its own, from a
 * warm cache, against `qemu-nbd` with the same volume in the host's page cache: random reads of 4 KiB, one and 16 at a
 * time, and reads of 1 MiB one after the other. Higher is better.
 */
import { execa } from 'execa';
import { mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ReadCache } from '../nbd/readCache.ts';
import { ScriptedSource } from '../nbd/scriptedSource.ts';
import { NbdServer } from '../nbd/server.ts';
import { roundsFrom } from './flows.ts';
import { readBeside, type ReadFigures } from './nbdReads.ts';
import { summarize } from './statistics.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const sizeBytes = 64 * MiB;
const stretch = { offsetBytes: 0, lengthBytes: sizeBytes };

async function compare(rounds: number): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-bench-'));
  const raw = join(directory, 'volume.raw');
  const content = Buffer.alloc(sizeBytes, Buffer.from(Array.from({ length: 65_521 }, (_, index) => index)));
  const file = await open(raw, 'w');
  await file.writeFile(content);
  await file.close();
  const [ours, theirs, pidFile] = [
    join(directory, 'ours'),
    join(directory, 'theirs'),
    join(directory, 'pid'),
  ];
  await execa(
    'qemu-nbd',
    ['--fork', '--pid-file', pidFile, '-t', '-r', '-x', 'vda', '-k', theirs, '-f', 'raw', raw],
    {
      stdio: 'ignore',
    },
  );
  const results: Record<'ours' | 'qemuNbd', ReadFigures[]> = { ours: [], qemuNbd: [] };
  try {
    await using _ = await NbdServer.listen({
      socketPath: ours,
      exports: new Map([['vda', new ScriptedSource(content)]]),
      cache: new ReadCache({ maxBytes: 2 * sizeBytes }),
      onError: (error) => {
        throw error;
      },
    });
    for (let round = 0; round < rounds; round += 1) {
      results.ours.push(await readBeside({ ...stretch, socketPath: ours }));
      results.qemuNbd.push(await readBeside({ ...stretch, socketPath: theirs }));
    }
  } finally {
    process.kill(Number(await readFile(pidFile, 'utf8')));
    await rm(directory, { recursive: true });
  }
  const summary = (figures: readonly ReadFigures[]): unknown => ({
    randomReadsPerSecond: summarize(
      figures.map(({ oneAtATime }) => oneAtATime),
      0,
    ),
    randomReadsPerSecondOf16: summarize(
      figures.map(({ sixteenAtATime }) => sixteenAtATime),
      0,
    ),
    mibPerSecond: summarize(
      figures.map(({ mibPerSecond }) => mibPerSecond),
      0,
    ),
  });
  console.log(
    JSON.stringify({ ours: summary(results.ours), qemuNbd: summary(results.qemuNbd) }, undefined, 2),
  );
}

await compare(roundsFrom('nbdServer'));
