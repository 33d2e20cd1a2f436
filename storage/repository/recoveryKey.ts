import { hash, randomBytes } from 'node:crypto';
import { RepositoryError } from './errors.ts';
import { keyBytes } from './seal.ts';

/*
 * A recovery key is 32 random bytes for people to print and to type: base32 after Crockford (no I, L, O, U), 52
 * characters and four more that tell a typing error, in groups of four.
 */

const alphabet = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
const checkCharacters = 4;

export function newRecoveryKey(): Buffer {
  return randomBytes(keyBytes);
}

/** As it is printed: 14 groups of four characters. */
export function formatRecoveryKey(key: Buffer): string {
  const text = toBase32(key) + checksum(key);
  return text.match(/.{4}/g)?.join('-') ?? text;
}

/** Reads what somebody typed: case, blanks and dashes do not matter, and O, I, L are taken for 0 and 1. */
export function parseRecoveryKey(text: string): Buffer {
  const plain = text.toUpperCase().replaceAll(/[\s-]/g, '').replaceAll('O', '0').replaceAll(/[IL]/g, '1');
  const key = fromBase32(plain.slice(0, -checkCharacters));
  if (key?.length === keyBytes && checksum(key) === plain.slice(-checkCharacters)) return key;
  throw new RepositoryError('KEY_WRONG', 'this is no recovery key, or a character of it is wrong', {
    hint: 'type all 14 groups of four characters as they were printed',
  });
}

function checksum(key: Buffer): string {
  return toBase32(hash('sha256', key, 'buffer')).slice(0, checkCharacters);
}

function toBase32(bytes: Buffer): string {
  const bits = Array.from(bytes, (byte) => byte.toString(2).padStart(8, '0')).join('');
  return (bits.match(/.{1,5}/g) ?? [])
    .map((group) => alphabet.charAt(Number.parseInt(group.padEnd(5, '0'), 2)))
    .join('');
}

/** `null` for other characters, and for bits that no byte has. */
function fromBase32(text: string): Buffer | null {
  const bits = Array.from(text, (character) => {
    const value = alphabet.indexOf(character);
    return value < 0 ? 'x' : value.toString(2).padStart(5, '0');
  }).join('');
  const whole = bits.length - (bits.length % 8);
  if (bits.includes('x') || bits.slice(whole).includes('1')) return null;
  return Buffer.from((bits.slice(0, whole).match(/.{8}/g) ?? []).map((byte) => Number.parseInt(byte, 2)));
}
