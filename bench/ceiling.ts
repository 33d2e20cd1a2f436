import { createHash, createHmac } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { sealBlob } from '../storage/repository/blob.ts';
import { encode } from '../storage/repository/codec.ts';
import { giveBack } from '../storage/repository/ownMemory.ts';
import { encryptParts } from '../storage/repository/seal.ts';

const mebibyte = 1024 * 1024;

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
  const stored = samples.map((sample) => Buffer.from(encode(sample).bytes));
  const msPerMebibyte = {
    hash: costOf(samples, (sample) => createHmac('sha256', key).update(sample).digest()),
    zstd: costOf(samples, (sample) => {
      const { bytes } = encode(sample);
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

/** Processor time of some work for a mebibyte, in ms. */
function costOf(samples: readonly Buffer[], work: (sample: Buffer) => void): number {
  for (const sample of samples) work(sample);
  const before = process.cpuUsage();
  for (let round = 0; round < 64; round++) work(samples[round % samples.length] ?? Buffer.alloc(0));
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000 / 64;
}
