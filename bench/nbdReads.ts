import { execa } from 'execa';
import * as z from 'zod';
import { NbdClient } from '../nbd/client.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const roundMs = 1000;

/** A stretch of the export `vda` of a server; its offset and length are multiples of 1 MiB. */
const stretchSchema = z.object({ socketPath: z.string(), offsetBytes: z.number(), lengthBytes: z.number() });
export type ReadStretch = z.infer<typeof stretchSchema>;

const figuresSchema = z.object({
  /** Random reads of 4 KiB, per second. */
  oneAtATime: z.number(),
  sixteenAtATime: z.number(),
  /** Reads of 1 MiB, one after the other. */
  mibPerSecond: z.number(),
});
export type ReadFigures = z.infer<typeof figuresSchema>;

/**
 * Reads a stretch once, and measures the reads after that, which find it in a cache. A process of its own does it: client
 * and server would only share one processor.
 */
export async function readBeside(stretch: ReadStretch): Promise<ReadFigures> {
  const { stdout } = await execa(process.execPath, [import.meta.filename, JSON.stringify(stretch)]);
  return figuresSchema.parse(JSON.parse(stdout));
}

async function measure({ socketPath, offsetBytes, lengthBytes }: ReadStretch): Promise<ReadFigures> {
  await using client = await NbdClient.connect({ socketPath, exportName: 'vda', answerMs: 10_000 });
  const target = Buffer.alloc(MiB);
  const readAll = async (): Promise<void> => {
    for (let at = 0; at < lengthBytes; at += MiB) await client.readInto(target, offsetBytes + at);
  };
  await readAll();
  const readRandomly = async (depth: number): Promise<number> => {
    const endMs = performance.now() + roundMs;
    let reads = 0;
    const reader = async (): Promise<void> => {
      const small = Buffer.alloc(4 * KiB);
      const pages = lengthBytes / small.length;
      for (; performance.now() < endMs; reads += 1)
        await client.readInto(small, offsetBytes + Math.floor(Math.random() * pages) * small.length);
    };
    await Promise.all(Array.from({ length: depth }, reader));
    return (reads / roundMs) * 1000;
  };
  const figures = { oneAtATime: await readRandomly(1), sixteenAtATime: await readRandomly(16) };
  const beginMs = performance.now();
  for (let round = 0; round < 8; round += 1) await readAll();
  return { ...figures, mibPerSecond: (8 * lengthBytes * 1000) / MiB / (performance.now() - beginMs) };
}

if (import.meta.main) {
  const stretch = stretchSchema.parse(JSON.parse(process.argv[2] ?? ''));
  console.log(JSON.stringify(await measure(stretch)));
}
