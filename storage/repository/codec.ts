import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { giveBack } from './ownMemory.ts';
import type { Codec } from './packFormat.ts';

/** What stands in a pack or an object: compressed, or as it was where that does not make it shorter. */
export interface Encoded {
  readonly codec: Codec;
  readonly level: number;
  readonly bytes: Buffer;
}

/** Fast, and most of what there is to gain: docs/SPEED.md has figures. */
export const zstdLevelDefault = 2;

/**
 * Level 2 looks for matches from 7 bytes on. From 5 on it finds nearly what level 3 does, in less time, and what is found
 * unpacks faster; level 1 stays what everybody knows as the fastest.
 */
const minMatchOfLevel2 = 5;

/** More than zstd can make longer what it cannot make shorter. */
function roomFor(rawBytes: number): number {
  return rawBytes + (rawBytes >> 7) + 1024;
}

/**
 * Compresses where it pays. In one piece: with Node's pieces of 16 KiB it takes half as much time again, and the pieces
 * have to be put together.
 *
 * @param level of zstd, 1 to 19; 0 does not compress
 */
export function encode(content: Buffer, level: number = zstdLevelDefault): Encoded {
  if (level > 0 && content.length > 64) {
    const bytes = zstdCompressSync(content, {
      params: {
        [constants.ZSTD_c_compressionLevel]: level,
        ...(level === 2 ? { [constants.ZSTD_c_minMatch]: minMatchOfLevel2 } : {}),
      },
      chunkSize: roomFor(content.length),
    });
    if (bytes.length < content.length) return { codec: 'zstd', level, bytes };
    giveBack(bytes);
  }
  return { codec: 'none', level: 0, bytes: content };
}

/** The content, or `null` when it has not exactly this length. Never takes more memory than that. */
export function decode(stored: Buffer, codec: Codec, rawBytes: number): Buffer | null {
  if (codec === 'none') return stored.length === rawBytes ? stored : null;
  let content: Buffer;
  try {
    // With a room that the content fills, Node takes a second one before it sees the end.
    content = zstdDecompressSync(stored, { maxOutputLength: rawBytes, chunkSize: rawBytes + 64 });
  } catch (error) {
    // What was authenticated and yet is no zstd, or longer than it says, is damage for the caller to name.
    if (error instanceof Error && 'code' in error) return null;
    throw error;
  }
  return content.length === rawBytes ? content : null;
}
