import { createCipheriv, createDecipheriv, createHmac, hkdfSync, timingSafeEqual } from 'node:crypto';
import { ByteWriter } from './bytes.ts';

/*
 * Invariant 11: a nonce never repeats, whatever crashed, was retried, forked or rolled back.
 *
 * There is no nonce to repeat: every key encrypts one text. `seal` makes the key out of the text itself, so that
 * the same key means the same text; blobs of packs (packFormat.ts) have a key out of the pack's salt and of what
 * the blob holds. A random generator that repeats itself, as in a virtual machine that is resumed twice from one
 * snapshot, therefore shows at the most that two texts are equal.
 */

export const keyBytes = 32;
export const tagBytes = 16;
/** What sealing adds to a text. */
export const sealBytes = 32 + tagBytes;

const zeroNonce = Buffer.alloc(12);

/** A key for one purpose, made out of another key: HKDF-SHA256 with info "stillpoint/1/LABEL" and no salt. */
export function deriveKey(key: Uint8Array, label: string): Buffer {
  return hkdf(key, Buffer.alloc(0), Buffer.from(`stillpoint/1/${label}`, 'latin1'));
}

/** HKDF-SHA256 (RFC 5869) with 32 bytes of output. */
export function hkdf(key: Uint8Array, salt: Uint8Array, info: Uint8Array): Buffer {
  return Buffer.from(hkdfSync('sha256', key, salt, info, keyBytes));
}

export function hmac(key: Uint8Array, ...parts: readonly Uint8Array[]): Buffer {
  const state = createHmac('sha256', key);
  for (const part of parts) state.update(part);
  return state.digest();
}

/** A ciphertext and its tag, which stands behind it wherever it is stored. */
export interface Encrypted {
  /** As long as the text; memory of its own. */
  readonly body: Buffer;
  readonly tag: Buffer;
}

/** AES-256-GCM with a key that encrypts nothing else. */
export function encryptParts(key: Uint8Array, text: Uint8Array, bound?: Uint8Array): Encrypted {
  const cipher = createCipheriv('aes-256-gcm', key, zeroNonce);
  if (bound !== undefined) cipher.setAAD(bound);
  const body = cipher.update(text);
  // Of GCM, the end gives no bytes but the tag.
  cipher.final();
  return { body, tag: cipher.getAuthTag() };
}

/** The text, or `null` when key, bound data or ciphertext are not the ones it was encrypted with. */
export function decryptParts(
  key: Uint8Array,
  { body, tag }: { readonly body: Uint8Array; readonly tag: Uint8Array },
  bound?: Uint8Array,
): Buffer | null {
  const decipher = createDecipheriv('aes-256-gcm', key, zeroNonce, { authTagLength: tagBytes });
  if (bound !== undefined) decipher.setAAD(bound);
  decipher.setAuthTag(tag);
  const text = decipher.update(body);
  try {
    decipher.final();
  } catch {
    // The only thing that `final` of GCM throws for is the tag.
    return null;
  }
  return text;
}

/** As `encryptParts`: the ciphertext, then the tag. */
export function encryptOnce(key: Uint8Array, text: Uint8Array, bound?: Uint8Array): Buffer {
  const { body, tag } = encryptParts(key, text, bound);
  return Buffer.concat([body, tag]);
}

/** The text, or `null`, as `decryptParts`. */
export function decryptOnce(key: Uint8Array, stored: Uint8Array, bound?: Uint8Array): Buffer | null {
  if (stored.length < tagBytes) return null;
  const split = stored.length - tagBytes;
  return decryptParts(key, { body: stored.subarray(0, split), tag: stored.subarray(split) }, bound);
}

/** Encrypts a text, and authenticates it with the data that it is bound to (docs/FORMAT.md, "Sealing"). */
export function seal(key: Uint8Array, bound: Uint8Array, text: Uint8Array): Buffer {
  const digest = sealDigest(key, bound, text);
  return Buffer.concat([digest, encryptOnce(hmac(deriveKey(key, 'seal/key'), digest), text, bound)]);
}

/** The text, or `null` when it was not sealed with this key and bound to this data. */
export function unseal(key: Uint8Array, bound: Uint8Array, sealed: Uint8Array): Buffer | null {
  if (sealed.length < sealBytes) return null;
  const digest = sealed.subarray(0, 32);
  const text = decryptOnce(hmac(deriveKey(key, 'seal/key'), digest), sealed.subarray(32), bound);
  return text !== null && timingSafeEqual(digest, sealDigest(key, bound, text)) ? text : null;
}

function sealDigest(key: Uint8Array, bound: Uint8Array, text: Uint8Array): Buffer {
  return hmac(deriveKey(key, 'seal/digest'), new ByteWriter().u64(bound.length).finish(), bound, text);
}
