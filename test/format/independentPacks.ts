import { createPrivateKey, createPublicKey, diffieHellman } from 'node:crypto';
import {
  ascii,
  check,
  decompress,
  derive,
  hkdf,
  hmac,
  limit,
  mebibyte,
  Newer,
  openGcm,
  u32,
  unseal,
} from './independentNotation.ts';

/* Of the independent reader: docs/FORMAT.md, "Packs" and "Index objects". */

const packBytesMax = 256 * mebibyte;
const blobsMax = 65_535;
const indexPacksMax = 100_000;
const x25519Private = Buffer.from('302e020100300506032b656e04220420', 'hex');
const x25519Public = Buffer.from('302a300506032b656e032100', 'hex');

/** A blob, as a table or an index tells of it. */
export interface Entry {
  /** Its 48 bytes. */
  readonly bytes: Buffer;
  readonly id: string;
  readonly type: number;
  readonly codec: number;
  readonly chunkSizeBytes: number;
  readonly rawBytes: number;
  readonly storedBytes: number;
  /** Of the blob in its pack. */
  readonly slot: number;
  readonly offset: number;
}

export interface IndexedPack {
  readonly id: string;
  readonly length: number;
  readonly entries: readonly Entry[];
}

export interface Index {
  readonly replaces: readonly string[];
  readonly packs: readonly IndexedPack[];
}

/** The key of a pack, from its header. */
export function packKey(pack: Buffer, repositoryId: Buffer, master: (generation: number) => Buffer): Buffer {
  const header = pack.subarray(0, 128);
  check(header.length === 128 && header.toString('latin1', 0, 8) === 'STILLPCK', 'the beginning of a pack');
  if (header.readUInt16BE(8) !== 1) throw new Newer(`a pack has version ${header.readUInt16BE(8)}`);
  const [kind, sealing, generation] = [header.readUInt8(10), header.readUInt8(11), header.readUInt32BE(12)];
  check([1, 2].includes(kind) && sealing <= 1, 'the kind of a pack');
  check(header.subarray(16, 32).equals(repositoryId), 'the repository of a pack');
  check(header.subarray(96, 112).equals(Buffer.alloc(16)), 'what is reserved in a pack');
  const secret =
    sealing === 0
      ? derive(master(generation), kind === 1 ? 'data' : 'tree')
      : sharedSecret(derive(master(generation), 'seal'), header.subarray(64, 96));
  const info = Buffer.concat([ascii('stillpoint/1/pack'), header.subarray(0, 112)]);
  const key = hkdf(secret, header.subarray(32, 64), info);
  check(
    hmac(derive(key, 'header'), header.subarray(0, 112)).subarray(0, 16).equals(header.subarray(112)),
    'the header of a pack',
  );
  return key;
}

function sharedSecret(privateKey: Buffer, publicKey: Buffer): Buffer {
  const secret = diffieHellman({
    privateKey: createPrivateKey({
      key: Buffer.concat([x25519Private, privateKey]),
      format: 'der',
      type: 'pkcs8',
    }),
    publicKey: createPublicKey({
      key: Buffer.concat([x25519Public, publicKey]),
      format: 'der',
      type: 'spki',
    }),
  });
  check(!secret.equals(Buffer.alloc(32)), 'the public key of a pack');
  return secret;
}

/** The blobs of a pack, from its table. */
export function packTable(pack: Buffer, key: Buffer): readonly Entry[] {
  const trailer = pack.subarray(-16);
  check(trailer.toString('latin1', 8) === 'STILLEND', 'the end of a pack');
  check(trailer.readUInt32BE(4) === 0, 'what is reserved in a pack');
  const count = trailer.readUInt32BE(0);
  limit(count <= blobsMax, 'the number of blobs');
  const start = pack.length - 16 - 48 - count * 48;
  check(start >= 128, 'the length of a pack');
  const bound = Buffer.concat([pack.subarray(0, 128), u32(count)]);
  const table = unseal(derive(key, 'table'), bound, pack.subarray(start, -16));
  const entries = parseEntries(table, count);
  checkPlaces(entries, pack.readUInt8(10), pack.length);
  return entries;
}

/** The content of a blob; whether it is that of its id the caller looks. */
export function openBlob(pack: Buffer, key: Buffer, { bytes, ...entry }: Entry): Buffer {
  const stored = openGcm(
    hmac(derive(key, 'blob'), Buffer.concat([u32(entry.slot), bytes])),
    Buffer.alloc(0),
    pack.subarray(entry.offset, entry.offset + entry.storedBytes + 16),
  );
  return decompress(entry.codec, stored, entry.rawBytes);
}

/** The content of an index object. */
export function parseIndex(content: Buffer): Index {
  let at = 0;
  const take = (length: number): Buffer => {
    at += length;
    check(at <= content.length, 'the length of an index');
    return content.subarray(at - length, at);
  };
  const replaced = take(4).readUInt32BE();
  limit(replaced <= indexPacksMax, 'what an index replaces');
  const replaces = Array.from({ length: replaced }, () => take(32).toString('hex'));
  const count = take(4).readUInt32BE();
  limit(count <= indexPacksMax, 'the number of packs in an index');
  const packs = Array.from({ length: count }, () => {
    const id = take(32).toString('hex');
    const length = Number(take(8).readBigUInt64BE());
    limit(length <= packBytesMax, 'the length of a pack');
    const kind = take(1).readUInt8();
    const blobs = take(4).readUInt32BE();
    limit(blobs <= blobsMax, 'the number of blobs');
    const entries = parseEntries(take(blobs * 48), blobs);
    checkPlaces(entries, kind, length);
    return { id, length, entries };
  });
  check(at === content.length, 'the length of an index');
  return { replaces, packs };
}

function parseEntries(table: Buffer, count: number): readonly Entry[] {
  let offset = 128;
  return Array.from({ length: count }, (_, slot) => {
    const entry = { ...parseEntry(table.subarray(slot * 48, slot * 48 + 48)), slot, offset };
    offset += entry.storedBytes + 16;
    return entry;
  });
}

function parseEntry(bytes: Buffer): Omit<Entry, 'slot' | 'offset'> {
  const [type, codec] = [bytes.readUInt8(32), bytes.readUInt8(33)];
  const chunkSizeBytes = bytes.readUInt32BE(36);
  const [rawBytes, storedBytes] = [bytes.readUInt32BE(40), bytes.readUInt32BE(44)];
  const rawBytesMax = new Map([
    [1, chunkSizeBytes],
    [2, 32_768],
    [3, 16 + 32 * 131_072],
  ]).get(type);
  check(rawBytesMax !== undefined && codec <= 1, 'the type of a blob');
  check(bytes.readUInt8(35) === 0, 'what is reserved in an entry');
  check(isChunkSize(chunkSizeBytes), 'the chunk size of a blob');
  check(rawBytes > 0 && rawBytes <= rawBytesMax, 'the length of a content');
  check(
    codec === 0 ? storedBytes === rawBytes : storedBytes > 0 && storedBytes < rawBytes,
    'the length of a blob',
  );
  return { bytes, id: bytes.toString('hex', 0, 32), type, codec, chunkSizeBytes, rawBytes, storedBytes };
}

/** The blobs must fill the pack, and be of its kind. */
function checkPlaces(entries: readonly Entry[], kind: number, length: number): void {
  const blobs = entries.reduce((total, { storedBytes }) => total + storedBytes + 16, 0);
  check(entries.length > 0, 'the number of blobs');
  check([1, 2].includes(kind), 'the kind of a pack');
  check(
    entries.every(({ type }) => (type === 1) === (kind === 1)),
    'the kind of a blob',
  );
  check(128 + blobs + entries.length * 48 + 48 + 16 === length, 'the length of a pack');
}

export function isChunkSize(value: number): boolean {
  return value >= 65_536 && value <= 16_777_216 && Number.isInteger(Math.log2(value));
}
