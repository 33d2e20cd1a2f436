import { randomBytes } from 'node:crypto';
import { ChunkTable } from '../storage/repository/chunkTable.ts';
import { ceilingOf, levelCosts } from './ceiling.ts';
import { summarize } from './statistics.ts';
import type { StoreBench } from './storeBench.ts';
import { mib, MixedContent } from './storeImage.ts';

/** A volume of 1 TiB, in chunks of 1 MiB. */
const chunks = 1024 * 1024;

/** What the processors could do with the content of the volumes, and what the index takes for each chunk. */
export function measureProcessor({ rounds, seed }: StoreBench): Promise<object> {
  const content = new MixedContent(seed);
  const samples = Array.from({ length: 16 }, () => content.fill(Buffer.alloc(mib)));
  const ceilings = Array.from({ length: rounds }, () => ceilingOf(samples));
  return Promise.resolve({
    ceilingBareMiBPerSecond: summarize(ceilings.map(({ ceilingBare }) => ceilingBare)),
    ceilingVerifiedMiBPerSecond: summarize(ceilings.map(({ ceilingVerified }) => ceilingVerified)),
    msPerMebibyte: ceilings[0]?.msPerMebibyte,
    compressionLevels: levelCosts(samples, [1, 2, 3, 6]),
    indexBytesPerChunk: indexBytesPerChunk(),
  });
}

/** The table grows in steps, so the most that it takes while it is filled is told, of half of the chunks on. */
function indexBytesPerChunk(): { readonly full: number; readonly most: number } {
  const table = new ChunkTable();
  const perChunk = (): number => table.memoryBytes / table.count;
  let most = 0;
  for (let slot = 0; slot < chunks; slot++) {
    table.add(Math.floor(slot / 64), {
      id: randomBytes(32),
      domain: { type: 'data', chunkSizeBytes: mib },
      codec: 'zstd',
      level: 1,
      rawBytes: mib,
      storedBytes: mib / 2,
      slot: slot % 64,
      offsetBytes: 128 + (slot % 64) * (mib / 2),
    });
    if (slot > chunks / 2) most = Math.max(most, perChunk());
  }
  return { full: Number(perChunk().toFixed(1)), most: Number(most.toFixed(1)) };
}
