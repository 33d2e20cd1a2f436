import { randomBytes } from 'node:crypto';
import { ChunkNamer } from './chunkId.ts';
import { KeyRing } from './keyRing.ts';
import type { PackKind } from './packFormat.ts';
import { type FinishedPack, PackWriter } from './packWriter.ts';

/** What the tests of the format share. */
export const chunkSizeBytes = 64 * 1024;
export const dataDomain = { type: 'data', chunkSizeBytes } as const;
export const pageDomain = { type: 'page', chunkSizeBytes } as const;

export interface FormatStage {
  readonly repositoryId: Buffer;
  readonly keys: KeyRing;
  readonly namer: ChunkNamer;
  /** A pack with these contents. */
  pack(contents: readonly Buffer[], kind?: PackKind): FinishedPack;
}

export function formatStage(): FormatStage {
  const repositoryId = randomBytes(16);
  const keys = KeyRing.generate();
  const namer = new ChunkNamer(keys.dedupKey);
  return {
    repositoryId,
    keys,
    namer,
    pack(contents, kind = 'data') {
      const writer = new PackWriter({ kind, repositoryId, keys });
      const domain = kind === 'data' ? dataDomain : pageDomain;
      for (const content of contents) writer.add(namer.idOf(domain, content), domain, content);
      return writer.finish();
    },
  };
}

/** A copy with one bit turned. */
export function flipped(bytes: Uint8Array, bit: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[bit >> 3] = (copy[bit >> 3] ?? 0) ^ (1 << (bit & 7));
  return copy;
}
