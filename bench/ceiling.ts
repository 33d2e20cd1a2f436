import { createHash, createHmac } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { sealBlob } from '../storage/repository/blob.ts';
import { decode, encode } from '../storage/repository/codec.ts';
import { giveBack } from '../storage/repository/ownMemory.ts';
import { encryptParts } from '../storage/repository/seal.ts';

const mebibyte = 1024 * 1024;
/** The fastest, whatever we use: what limits is what cannot be had for less. */
const ceilingLevel = 1;

/** What the processors could do with such content if nothing else took time. */
export interface Ceiling {
  readonly processors: number;
  /** Processor time of the parts, for a mebibyte of content. */
  readonly msPerMebibyte: Readonly<Record<'hash' | 'zstd' | 'gcm' | 'sealVerified' | 'packName', number>>;
  /** MiB/s: hash, zstd of level 1 and AES-GCM alone. */
  readonly ceilingBare: number;
  /** MiB/s, with what we do beyond that: what is sealed is opened and compared, and the pack is hashed for its name. */
  readonly ceilingVerified: number;
}

/** Calculates it from chunks of one mebibyte, of which each should be another one, as in a backup. */
export function ceilingOf(samples: readonly Buffer[]): Ceiling {
  const key = Buffer.alloc(32, 1);
  const domain = { type: 'data', chunkSizeBytes: mebibyte } as const;
  const stored = samples.map((sample) => Buffer.from(encode(sample, ceilingLevel).bytes));
  const msPerMebibyte = {
    hash: costOf(samples, (sample) => createHmac('sha256', key).update(sample).digest()),
    zstd: costOf(samples, (sample) => {
      const { bytes } = encode(sample, ceilingLevel);
      if (bytes !== sample) giveBack(bytes);
    }),
    gcm: costOf(stored, (sample) => giveBack(encryptParts(key, sample).body)),
    sealVerified: costOf(samples, (sample) =>
      giveBack(sealBlob(sample, { blobSecret: key, slot: 0, id: key, domain }).body),
    ),
    packName: costOf(stored, (sample) => createHash('sha256').update(sample).digest()),
  };
  const processors = availableParallelism();
  const rate = (ms: number): number => Math.round((1000 / ms) * processors);
  const { hash, zstd, gcm, sealVerified, packName } = msPerMebibyte;
  return {
    processors,
    msPerMebibyte,
    ceilingBare: rate(hash + zstd + gcm),
    ceilingVerified: rate(hash + sealVerified + packName),
  };
}

/** What a level makes of such content, and what it costs. */
export interface LevelCost {
  /** Of the content. */
  readonly storedShare: number;
  /** Processor time for a mebibyte, to store it with its check; and to read it. */
  readonly sealMsPerMebibyte: number;
  readonly openMsPerMebibyte: number;
}

/** Calculates it, of levels that compress. */
export function levelCosts(
  samples: readonly Buffer[],
  levels: readonly number[],
): Readonly<Record<number, LevelCost>> {
  const key = Buffer.alloc(32, 1);
  const domain = { type: 'data', chunkSizeBytes: mebibyte } as const;
  const rounded = (value: number): number => Number(value.toFixed(3));
  const costs = levels.map((level): readonly [number, LevelCost] => {
    const stored = samples.map((sample) => encode(sample, level));
    const storedBytes = stored.reduce((sum, { bytes }) => sum + bytes.length, 0);
    const order = { blobSecret: key, slot: 0, id: key, domain, level };
    const sealMs = costOf(samples, (sample) => giveBack(sealBlob(sample, order).body));
    const openMs = costOf(
      stored.map(({ bytes }) => bytes),
      (bytes) => giveBack(decode(bytes, 'zstd', mebibyte) ?? Buffer.alloc(0)),
    );
    return [
      level,
      {
        storedShare: rounded(storedBytes / samples.length / mebibyte),
        sealMsPerMebibyte: rounded(sealMs),
        openMsPerMebibyte: rounded(openMs),
      },
    ];
  });
  return Object.fromEntries(costs);
}

/** Processor time of some work for a mebibyte, in ms. */
function costOf(samples: readonly Buffer[], work: (sample: Buffer) => void): number {
  for (const sample of samples) work(sample);
  const before = process.cpuUsage();
  for (let round = 0; round < 64; round++) work(samples[round % samples.length] ?? Buffer.alloc(0));
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000 / 64;
}
