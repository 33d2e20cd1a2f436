import { timingSafeEqual } from 'node:crypto';
import type { ChunkDomain } from './chunkId.ts';
import { decode, encode } from './codec.ts';
import { asBuffer, giveBack } from './ownMemory.ts';
import { type Codec, type PackEntry, blobKey } from './packFormat.ts';
import { decryptParts, encryptParts, hmac, tagBytes } from './seal.ts';

/*
 * One chunk on its way into a pack or out of it: all that takes time, and nothing that knows of packs, indexes or
 * stores, so that it can be done on any thread.
 */

/** Where a blob will stand, and under which key. */
export interface BlobOrder {
  /** Of the pack; see `PackKeys`. */
  readonly blobSecret: Uint8Array;
  readonly slot: number;
  readonly id: Uint8Array;
  readonly domain: ChunkDomain;
  /** Of zstd. */
  readonly level?: number | undefined;
}

/** A blob, and what the table says of it. */
export interface SealedBlob {
  /** Ciphertext, `storedBytes` long. */
  readonly body: Uint8Array;
  readonly tag: Uint8Array;
  readonly codec: Codec;
  readonly level: number;
  readonly storedBytes: number;
}

/**
 * Compresses and encrypts a chunk, then decrypts it again and compares: memory that fails is noticed while the data can
 * still be read from its source.
 *
 * @throws Error when it does not come out as it went in
 */
export function sealBlob(
  content: Uint8Array,
  { blobSecret, slot, id, domain, level }: BlobOrder,
): SealedBlob {
  const raw = asBuffer(content);
  const encoded = encode(raw, level);
  const storedBytes = encoded.bytes.length;
  const { codec } = encoded;
  const entry: PackEntry = {
    id: asBuffer(id),
    domain,
    codec,
    level: encoded.level,
    rawBytes: raw.length,
    storedBytes,
  };
  const encrypted = encryptParts(blobKey(blobSecret, slot, entry), encoded.bytes);
  if (encoded.bytes !== raw) giveBack(encoded.bytes);
  // The key is made again, too: out of what will stand in the table.
  const opened = openBody(encrypted, { key: blobKey(blobSecret, slot, entry), codec, rawBytes: raw.length });
  const isSame = typeof opened !== 'string' && opened.equals(raw);
  if (typeof opened !== 'string') giveBack(opened);
  if (!isSame)
    throw new Error('a chunk that was packed does not unpack to what it was: check the memory of this host');
  return { ...encrypted, codec, level: encoded.level, storedBytes };
}

/** How to open a blob. */
export interface BlobKey {
  readonly key: Uint8Array;
  readonly codec: Codec;
  readonly rawBytes: number;
}

/** What is wrong with a blob, in words that follow its name. */
export type BlobFault = 'is not authentic' | 'does not unpack' | 'is not that of its id';

/** The content of a blob: decrypted, unpacked, not yet compared with its id. */
export function openBody(
  encrypted: { readonly body: Uint8Array; readonly tag: Uint8Array },
  { key, codec, rawBytes }: BlobKey,
): Buffer | BlobFault {
  const stored = decryptParts(key, encrypted);
  if (stored === null) return 'is not authentic';
  const content = decode(stored, codec, rawBytes);
  if (content !== stored) giveBack(stored);
  return content ?? 'does not unpack';
}

/** As `openBody`, and the content is what its id stands for (promise: every byte is compared when read). */
export function openCompared(
  blob: Uint8Array,
  { id, idKey, ...how }: BlobKey & { readonly id: Uint8Array; readonly idKey: Uint8Array },
): Buffer | BlobFault {
  if (blob.length < tagBytes) return 'is not authentic';
  const split = blob.length - tagBytes;
  const content = openBody({ body: blob.subarray(0, split), tag: blob.subarray(split) }, how);
  if (typeof content === 'string' || timingSafeEqual(hmac(idKey, content), id)) return content;
  giveBack(content);
  return 'is not that of its id';
}
