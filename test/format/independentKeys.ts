import { scryptSync } from 'node:crypto';
import {
  ascii,
  check,
  derive,
  fromHex,
  hkdf,
  hmac,
  limit,
  Newer,
  sha256,
  unseal,
} from './independentNotation.ts';

/* Of the independent reader: docs/FORMAT.md, "Configuration" and "Keys". */

export type ReaderSecret =
  | { readonly passphrase: string }
  | { readonly keyFile: string }
  | { readonly recovery: string };

/** Master keys by their generations. */
export type Masters = ReadonlyMap<number, Buffer>;

export interface Slot {
  format: string;
  formatVersion: number;
  repositoryId: string;
  slotId: string;
  kind: string;
  salt: string;
  scrypt?: { logN: number; r: number; p: number };
  sealed: string;
}

export interface Config {
  format: string;
  formatVersion: number;
  revision: number;
  repositoryId: string;
  keyGeneration: number;
  requires: string[];
  chunkSizeBytes: number;
  packSizeBytes: number;
}

/** A configuration that only the keys can prove. */
export interface UnprovedConfig {
  readonly config: Config;
  readonly line: Buffer;
  readonly mac: string;
}

const slotBytesMax = 64 * 1024;
const configBytesMax = 64 * 1024;

const alphabet = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** @param name the last component of the name of the object */
export function parseSlot(bytes: Buffer, name: string): Slot {
  limit(bytes.length <= slotBytesMax, 'the length of a key slot');
  const slot: Slot = JSON.parse(bytes.toString('utf8'));
  check(slot.format === 'stillpoint-key-slot', 'the format of a key slot');
  if (slot.formatVersion !== 1) throw new Newer(`a key slot has version ${slot.formatVersion}`);
  check(slot.slotId === name && uuid.test(slot.repositoryId), 'the id of a key slot');
  check(['passphrase', 'keyFile', 'recovery'].includes(slot.kind), 'the kind of a key slot');
  check((slot.scrypt !== undefined) === (slot.kind === 'passphrase'), 'for what there is scrypt');
  fromHex(slot.salt, 32, 'the salt of a key slot');
  if (slot.scrypt !== undefined) {
    const { logN, r, p } = slot.scrypt;
    check(
      [logN, r, p].every((value) => Number.isInteger(value)),
      'a parameter of scrypt',
    );
    limit(logN >= 14 && logN <= 20, 'N of scrypt');
    limit(r >= 1 && r <= 8 && p >= 1 && p <= 4, 'r or p of scrypt');
  }
  // In one way only: bits that stand for nothing are zero.
  check(Buffer.from(slot.sealed, 'base64').toString('base64') === slot.sealed, 'the base64 of a key slot');
  return slot;
}

/** The key ring, or `null` where it is another secret that opens this slot. */
export function openSlot(slot: Slot, secret: ReaderSecret): Masters | null {
  const material = materialOf(slot, secret);
  if (material === null) return null;
  const key = hkdf(material, Buffer.from(slot.salt, 'hex'), ascii(`stillpoint/1/slot/${slot.kind}`));
  const bound = ascii(`stillpoint/1/slot/${slot.repositoryId}/${slot.slotId}`);
  let ring: Buffer;
  try {
    ring = unseal(key, bound, Buffer.from(slot.sealed, 'base64'));
  } catch {
    return null;
  }
  const count = ring.readUInt32BE(0);
  limit(count <= 1000, 'the number of generations');
  check(count > 0 && ring.length === 4 + count * 36, 'the length of a key ring');
  const masters = new Map<number, Buffer>();
  for (let index = 0; index < count; index++) {
    const start = 4 + index * 36;
    check(ring.readUInt32BE(start) === index + 1, 'the order of generations');
    masters.set(index + 1, ring.subarray(start + 4, start + 36));
  }
  return masters;
}

function materialOf(slot: Slot, secret: ReaderSecret): Buffer | null {
  if ('passphrase' in secret && slot.kind === 'passphrase') {
    const { logN, r, p } = slot.scrypt ?? { logN: 0, r: 0, p: 0 };
    const options = { N: 2 ** logN, r, p, maxmem: 2 ** 31 };
    return scryptSync(secret.passphrase.normalize('NFC'), Buffer.from(slot.salt, 'hex'), 32, options);
  }
  if ('keyFile' in secret && slot.kind === 'keyFile') {
    check(/^[0-9a-fA-F]{64}\s*$/.test(secret.keyFile), 'the key file');
    return Buffer.from(secret.keyFile.trim(), 'hex');
  }
  return 'recovery' in secret && slot.kind === 'recovery' ? recoveryKey(secret.recovery) : null;
}

/** A recovery key as somebody typed it. */
export function recoveryKey(text: string): Buffer {
  const typed = text.toUpperCase().replaceAll(/[\s-]/g, '').replaceAll('O', '0').replaceAll(/[IL]/g, '1');
  check(typed.length === 56, 'the length of the recovery key');
  let value = 0n;
  for (const character of typed.slice(0, 52)) {
    check(alphabet.includes(character), 'a character of the recovery key');
    value = value * 32n + BigInt(alphabet.indexOf(character));
  }
  // 52 characters are 260 bits; the last four of them are padding.
  check((value & 15n) === 0n, 'the padding of the recovery key');
  const key = Buffer.from((value >> 4n).toString(16).padStart(64, '0'), 'hex');
  // Four characters are the first 20 bits.
  const sum = sha256(key).readUIntBE(0, 3) >> 4;
  const characters = [15, 10, 5, 0].map((shift) => alphabet.charAt((sum >> shift) & 31)).join('');
  check(characters === typed.slice(52), 'the last group of the recovery key');
  return key;
}

/** A copy of a configuration as it stands in the store. */
export function parseConfig(bytes: Buffer, revision: number): UnprovedConfig {
  limit(bytes.length <= configBytesMax, 'the length of a configuration');
  const [text = '', mac = '', ...rest] = bytes.toString('latin1').split('\n');
  check(rest.length === 1 && rest[0] === '', 'the lines of a configuration');
  const line = ascii(text);
  const config: Config = JSON.parse(line.toString('utf8'));
  check(config.format === 'stillpoint-repository', 'the format of a configuration');
  if (config.formatVersion !== 1) throw new Newer(`a configuration has version ${config.formatVersion}`);
  check(Array.isArray(config.requires), 'what a configuration requires');
  if (config.requires.length > 0) throw new Newer(`a configuration requires ${config.requires.join(', ')}`);
  check(config.revision === revision, 'the revision of a configuration');
  check(uuid.test(config.repositoryId), 'the id of the repository');
  const { packSizeBytes } = config;
  limit(packSizeBytes >= 1024 && packSizeBytes <= 134_217_728, 'the size of packs');
  return { config, line, mac };
}

/** Whether who wrote a configuration had these keys. */
export function isProved({ config, line, mac }: UnprovedConfig, masters: Masters): boolean {
  const master = masters.get(config.keyGeneration);
  return master !== undefined && hmac(derive(master, 'config'), line).toString('hex') === mac;
}
