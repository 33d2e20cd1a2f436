/**
 * npm run bench -- nbdServer [ROUNDS]: what our NBD server gives to a client that has a process of its own, from a
 * warm cache, against `qemu-nbd` with the same volume in the host's page cache: random reads of 4 KiB, one and 16 at a
 * time, and reads of 1 MiB one after the other. Higher is better.
 */
import { execa } from 'execa';
import { mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { NbdClient } from '../nbd/client.ts';
import { ReadCache } from '../nbd/readCache.ts';
import { ScriptedSource } from '../nbd/scriptedSource.ts';
import { NbdServer } from '../nbd/server.ts';
import { roundsFrom } from './flows.ts';
import { summarize } from './statistics.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const sizeBytes = 64 * MiB;
const roundMs = 1000;

const figuresSchema = z.object({
  oneAtATime: z.number(),
  sixteenAtATime: z.number(),
  mibPerSecond: z.number(),
});
type Figures = z.infer<typeof figuresSchema>;

/** Reads for one round, in the worker. */
async function measure(socketPath: string): Promise<Figures> {
  await using client = await NbdClient.connect({ socketPath, exportName: 'vda', answerMs: 10_000 });
  const target = Buffer.alloc(MiB);
  const readAll = async (): Promise<void> => {
    for (let at = 0; at < sizeBytes; at += MiB) await client.readInto(target, at);
  };
  await readAll();
  const readRandomly = async (depth: number): Promise<number> => {
    const endMs = performance.now() + roundMs;
    let reads = 0;
    const reader = async (): Promise<void> => {
      const small = Buffer.alloc(4 * KiB);
      for (; performance.now() < endMs; reads += 1)
        await client.readInto(small, Math.floor((Math.random() * sizeBytes) / small.length) * small.length);
    };
    await Promise.all(Array.from({ length: depth }, reader));
    return (reads / roundMs) * 1000;
  };
  const figures = { oneAtATime: await readRandomly(1), sixteenAtATime: await readRandomly(16) };
  const beginMs = performance.now();
  for (let round = 0; round < 8; round += 1) await readAll();
  return { ...figures, mibPerSecond: (8 * sizeBytes * 1000) / MiB / (performance.now() - beginMs) };
}

/** In a process of its own: client and server would only share one processor. */
async function measureBeside(socketPath: string): Promise<Figures> {
  const { stdout } = await execa(process.execPath, [import.meta.filename, '--read', socketPath]);
  return figuresSchema.parse(JSON.parse(stdout));
}

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
  const results: Record<'ours' | 'qemuNbd', Figures[]> = { ours: [], qemuNbd: [] };
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
      results.ours.push(await measureBeside(ours));
      results.qemuNbd.push(await measureBeside(theirs));
    }
  } finally {
    process.kill(Number(await readFile(pidFile, 'utf8')));
    await rm(directory, { recursive: true });
  }
  const summary = (figures: readonly Figures[]): unknown => ({
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

const [, , mode, path] = process.argv;
if (mode === '--read') console.log(JSON.stringify(await measure(z.string().parse(path))));
else await compare(roundsFrom('nbdServer'));
