import { createDecipheriv, createHash, createHmac, hkdfSync } from 'node:crypto';
import { zstdDecompressSync } from 'node:zlib';

/*
 * Of the independent reader: docs/FORMAT.md, "Words and notation", "Sealing" and "Limits". Like all of that reader it
 * imports nothing of Stillpoint.
 */

/** Something that asks for a newer program, or that is damaged; only a newer program can tell. */
export class Newer extends Error {}

export const mebibyte = 1024 * 1024;
export const zeroId = '00'.repeat(32);

const zeroNonce = Buffer.alloc(12);

/** Throws unless what the specification says holds. */
export function check(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(`independent reader: ${what} is wrong`);
}

/** Throws where something exceeds the limits of the specification. */
export function limit(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(`independent reader: ${what} is over a limit`);
}

export function ascii(text: string): Buffer {
  return Buffer.from(text, 'latin1');
}

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** Bytes of lower-case hexadecimal digits. */
export function fromHex(text: string, bytes: number, what: string): Buffer {
  check(/^[0-9a-f]*$/.test(text) && text.length === bytes * 2, what);
  return Buffer.from(text, 'hex');
}

export function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest();
}

export function hmac(key: Buffer, text: Buffer): Buffer {
  return createHmac('sha256', key).update(text).digest();
}

export function hkdf(key: Buffer, salt: Buffer, info: Buffer): Buffer {
  return Buffer.from(hkdfSync('sha256', key, salt, info, 32));
}

export function derive(key: Buffer, label: string): Buffer {
  return hkdf(key, Buffer.alloc(0), ascii(`stillpoint/1/${label}`));
}

export function openGcm(key: Buffer, bound: Buffer, stored: Buffer): Buffer {
  check(stored.length >= 16, 'the length of an encrypted text');
  const decipher = createDecipheriv('aes-256-gcm', key, zeroNonce);
  decipher.setAAD(bound);
  decipher.setAuthTag(stored.subarray(-16));
  return Buffer.concat([decipher.update(stored.subarray(0, -16)), decipher.final()]);
}

export function unseal(key: Buffer, bound: Buffer, sealed: Buffer): Buffer {
  check(sealed.length >= 48, 'the length of a sealed text');
  const digest = sealed.subarray(0, 32);
  const text = openGcm(hmac(derive(key, 'seal/key'), digest), bound, sealed.subarray(32));
  const length = Buffer.alloc(8);
  length.writeBigUInt64BE(BigInt(bound.length));
  check(
    digest.equals(hmac(derive(key, 'seal/digest'), Buffer.concat([length, bound, text]))),
    'the digest of a sealed text',
  );
  return text;
}

export function decompress(codec: number, stored: Buffer, rawBytes: number): Buffer {
  const content = codec === 1 ? zstdDecompressSync(stored, { maxOutputLength: rawBytes }) : stored;
  check(codec <= 1 && content.length === rawBytes, 'a length after decompression');
  return content;
}

/** Why something throws; `null` if it does not. */
export function failureOf(act: () => unknown): string | null {
  try {
    act();
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** What comes of something; `null` where it throws. */
export function orNull<T>(act: () => T): T | null {
  try {
    return act();
  } catch {
    return null;
  }
}
