import {
  createDecipheriv,
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  hkdfSync,
  scryptSync,
  verify,
} from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { zstdDecompressSync } from 'node:zlib';

/*
 * A second reader of repositories, written from docs/FORMAT.md alone: it imports nothing of Stillpoint, and is as
 * plain as it can be. What it cannot read, the specification does not say.
 */

export type ReaderSecret =
  | { readonly passphrase: string }
  | { readonly keyFile: string }
  | { readonly recovery: string };

/** A backup and the bytes of each of its streams. */
export interface ReadBackup {
  readonly id: string;
  readonly machine: string;
  readonly pointInTime: string;
  readonly streams: ReadonlyMap<string, Buffer>;
}

interface Slot {
  repositoryId: string;
  slotId: string;
  kind: string;
  salt: string;
  scrypt?: { logN: number; r: number; p: number };
  sealed: string;
}

interface Content {
  root: string;
  sizeBytes: number;
  chunkSizeBytes: number;
}

interface Manifest {
  id: string;
  requires: string[];
  pointInTime: string;
  machine: { name: string };
  volumes: { target: string; content: Content }[];
  memory?: { content: Content };
  definition: { content: Content };
  extras: { kind: string; content: Content }[];
}

interface Place {
  pack: string;
  slot: number;
  offset: number;
  entry: Buffer;
}

const zeroNonce = Buffer.alloc(12);
const zeroId = '00'.repeat(32);
const x25519Private = Buffer.from('302e020100300506032b656e04220420', 'hex');
const x25519Public = Buffer.from('302a300506032b656e032100', 'hex');
const ed25519Private = Buffer.from('302e020100300506032b657004220420', 'hex');

// Notation

function ascii(text: string): Buffer {
  return Buffer.from(text, 'latin1');
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest();
}

function hmac(key: Buffer, text: Buffer): Buffer {
  return createHmac('sha256', key).update(text).digest();
}

function hkdf(key: Buffer, salt: Buffer, info: Buffer): Buffer {
  return Buffer.from(hkdfSync('sha256', key, salt, info, 32));
}

function derive(key: Buffer, label: string): Buffer {
  return hkdf(key, Buffer.alloc(0), ascii(`stillpoint/1/${label}`));
}

function openGcm(key: Buffer, bound: Buffer, stored: Buffer): Buffer {
  const decipher = createDecipheriv('aes-256-gcm', key, zeroNonce);
  decipher.setAAD(bound);
  decipher.setAuthTag(stored.subarray(-16));
  return Buffer.concat([decipher.update(stored.subarray(0, -16)), decipher.final()]);
}

export function unseal(key: Buffer, bound: Buffer, sealed: Buffer): Buffer {
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

function decompress(codec: number, stored: Buffer, rawBytes: number): Buffer {
  const content = codec === 1 ? zstdDecompressSync(stored, { maxOutputLength: rawBytes }) : stored;
  check(codec <= 1 && content.length === rawBytes, 'a length after decompression');
  return content;
}

function check(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(`independent reader: ${what} is wrong`);
}

// Key slots

export function openSlot(slot: Slot, secret: ReaderSecret): Map<number, Buffer> | null {
  const salt = Buffer.from(slot.salt, 'hex');
  let material: Buffer;
  if ('passphrase' in secret && slot.kind === 'passphrase') {
    const { logN, r, p } = slot.scrypt ?? { logN: 0, r: 0, p: 0 };
    const options = { N: 2 ** logN, r, p, maxmem: 2 ** 31 };
    material = scryptSync(secret.passphrase.normalize('NFC'), salt, 32, options);
  } else if ('keyFile' in secret && slot.kind === 'keyFile')
    material = Buffer.from(secret.keyFile.trim(), 'hex');
  else if ('recovery' in secret && slot.kind === 'recovery') material = fromBase32(secret.recovery);
  else return null;
  const key = hkdf(material, salt, ascii(`stillpoint/1/slot/${slot.kind}`));
  const bound = ascii(`stillpoint/1/slot/${slot.repositoryId}/${slot.slotId}`);
  let ring: Buffer;
  try {
    ring = unseal(key, bound, Buffer.from(slot.sealed, 'base64'));
  } catch {
    return null;
  }
  const masters = new Map<number, Buffer>();
  for (let index = 0; index < ring.readUInt32BE(0); index++) {
    const start = 4 + index * 36;
    masters.set(ring.readUInt32BE(start), ring.subarray(start + 4, start + 36));
  }
  return masters;
}

function fromBase32(text: string): Buffer {
  const alphabet = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
  let value = 0n;
  for (const character of text.replaceAll('-', '').slice(0, 52)) {
    check(alphabet.includes(character), 'a character of the recovery key');
    value = value * 32n + BigInt(alphabet.indexOf(character));
  }
  // 52 characters are 260 bits; the last four of them are padding.
  return Buffer.from((value >> 4n).toString(16).padStart(64, '0'), 'hex');
}

/** Reads a repository in a directory. */
export class IndependentReader {
  readonly #root: string;
  readonly #masters: Map<number, Buffer>;
  readonly #repositoryId: Buffer;
  readonly #places = new Map<string, Place[]>();

  constructor(root: string, secret: ReaderSecret) {
    this.#root = root;
    let revision = 1;
    while (existsSync(join(root, configName(revision + 1)))) revision++;
    const [line = '', mac = ''] = readFileSync(join(root, configName(revision)), 'utf8').split('\n');
    const config = JSON.parse(line);
    check(config.format === 'stillpoint-repository' && config.formatVersion === 1, 'the format');
    check(config.requires.length === 0, 'a required feature');
    const rings = readdirSync(join(root, 'keys'))
      .map((name) => JSON.parse(readFileSync(join(root, 'keys', name), 'utf8')))
      .filter((slot) => slot.repositoryId === config.repositoryId)
      .map((slot) => openSlot(slot, secret));
    const proves = (ring: Map<number, Buffer> | null): boolean => {
      const master = ring?.get(config.keyGeneration);
      return (
        master !== undefined && hmac(derive(master, 'config'), Buffer.from(line)).toString('hex') === mac
      );
    };
    const masters = rings.find(proves);
    if (masters === undefined || masters === null) throw new Error('no slot opens with this secret');
    this.#masters = masters;
    this.#repositoryId = Buffer.from(config.repositoryId.replaceAll('-', ''), 'hex');
    this.#readIndexes();
  }

  /** Every backup that exists, in the order of their ids. */
  backups(): ReadBackup[] {
    const backups: ReadBackup[] = [];
    for (const attempt of readdirSync(join(this.#root, 'manifests')).toSorted()) {
      const id = attempt.replace(/\.([2-9]|[1-9][0-9]{1,3})$/, '');
      if (existsSync(join(this.#root, 'deletions', id))) continue;
      const { type, content } = this.#openObject(
        readFileSync(join(this.#root, 'manifests', attempt)),
        `manifests/${attempt}`,
      );
      if (type === 6) continue;
      check(type === 1, 'the type of a manifest');
      const manifest: Manifest = JSON.parse(content.toString('utf8'));
      check(manifest.id === id && manifest.requires.length === 0, 'the id of a manifest');
      const streams = new Map<string, Buffer>();
      for (const { target, content: stream } of manifest.volumes) streams.set(target, this.#stream(stream));
      if (manifest.memory !== undefined) streams.set('memory', this.#stream(manifest.memory.content));
      streams.set('definition', this.#stream(manifest.definition.content));
      for (const { kind, content: stream } of manifest.extras) streams.set(kind, this.#stream(stream));
      backups.push({ id, machine: manifest.machine.name, pointInTime: manifest.pointInTime, streams });
    }
    return backups;
  }

  #master(generation: number): Buffer {
    const master = this.#masters.get(generation);
    if (master === undefined) throw new Error(`no master key of generation ${generation}`);
    return master;
  }

  #openObject(bytes: Buffer, name: string): { type: number; content: Buffer } {
    check(bytes.toString('latin1', 0, 8) === 'STILLOBJ' && bytes.readUInt16BE(8) === 1, 'an object');
    const [type, codec, generation] = [bytes.readUInt8(10), bytes.readUInt8(11), bytes.readUInt32BE(12)];
    check(bytes.subarray(16, 32).equals(this.#repositoryId), 'the repository of an object');
    const end = 40 + bytes.readUInt32BE(36);
    const master = this.#master(generation);
    if ([1, 3, 5, 6, 7].includes(type)) {
      const seed = derive(master, 'sign');
      const publicKey = createPublicKey(
        createPrivateKey({ key: Buffer.concat([ed25519Private, seed]), format: 'der', type: 'pkcs8' }),
      );
      const signer = sha256(publicKey.export({ format: 'der', type: 'spki' }).subarray(-32)).subarray(0, 8);
      check(bytes.subarray(end, end + 8).equals(signer), 'the signer of an object');
      const length = Buffer.alloc(2);
      length.writeUInt16BE(name.length);
      const text = [ascii('stillpoint/1/signature'), length, ascii(name), bytes.subarray(0, end + 8)];
      check(
        verify(null, Buffer.concat(text), publicKey, bytes.subarray(end + 8, end + 72)),
        'the signature of an object',
      );
      check(bytes.length === end + 72, 'the length of an object');
    } else check(bytes.length === end, 'the length of an object');
    const key = derive(master, [1, 5, 6].includes(type) ? 'manifest' : 'object');
    const stored = unseal(key, Buffer.concat([bytes.subarray(0, 40), ascii(name)]), bytes.subarray(40, end));
    return { type, content: decompress(codec, stored, bytes.readUInt32BE(32)) };
  }

  #readIndexes(): void {
    const contents = new Map<string, Buffer>();
    for (const name of readdirSync(join(this.#root, 'indexes'))) {
      const bytes = readFileSync(join(this.#root, 'indexes', name));
      check(sha256(bytes).toString('hex') === name, 'the name of an index');
      contents.set(name, this.#openObject(bytes, 'indexes').content);
    }
    const replaced = new Set<string>();
    for (const content of contents.values())
      for (let index = 0; index < content.readUInt32BE(0); index++)
        replaced.add(content.toString('hex', 4 + index * 32, 36 + index * 32));
    for (const [name, content] of contents) if (!replaced.has(name)) this.#readIndex(content);
  }

  #readIndex(content: Buffer): void {
    let at = 4 + content.readUInt32BE(0) * 32;
    const packs = content.readUInt32BE(at);
    at += 4;
    for (let index = 0; index < packs; index++) {
      const pack = content.toString('hex', at, at + 32);
      const entries = content.readUInt32BE(at + 41);
      at += 45;
      let offset = 128;
      for (let slot = 0; slot < entries; slot++, at += 48) {
        const entry = content.subarray(at, at + 48);
        const id = entry.toString('hex', 0, 32);
        this.#places.set(id, [...(this.#places.get(id) ?? []), { pack, slot, offset, entry }]);
        offset += entry.readUInt32BE(44) + 16;
      }
    }
    check(at === content.length, 'the length of an index');
  }

  #stream({ root, sizeBytes, chunkSizeBytes }: Content): Buffer {
    const bytes = this.#chunk(root, 3, chunkSizeBytes);
    check(Number(bytes.readBigUInt64BE(0)) === sizeBytes, 'the length of a stream');
    check(bytes.readUInt32BE(8) === chunkSizeBytes, 'the chunk size of a stream');
    const chunks = Math.ceil(sizeBytes / chunkSizeBytes);
    const pages = Math.ceil(chunks / 1024);
    check(bytes.readUInt32BE(12) === pages && bytes.length === 16 + pages * 32, 'the pages of a stream');
    const content = Buffer.alloc(sizeBytes);
    for (let page = 0; page < pages; page++) {
      const pageId = bytes.toString('hex', 16 + page * 32, 48 + page * 32);
      if (pageId === zeroId) continue;
      const ids = this.#chunk(pageId, 2, chunkSizeBytes);
      check(ids.length === Math.min(1024, chunks - page * 1024) * 32, 'the length of a page');
      for (let index = 0; index < ids.length / 32; index++) {
        const id = ids.toString('hex', index * 32, index * 32 + 32);
        if (id === zeroId) continue;
        const offset = (page * 1024 + index) * chunkSizeBytes;
        const data = this.#chunk(id, 1, chunkSizeBytes);
        check(data.length === Math.min(chunkSizeBytes, sizeBytes - offset), 'the length of a chunk');
        data.copy(content, offset);
      }
    }
    return content;
  }

  #chunk(id: string, type: number, chunkSizeBytes: number): Buffer {
    const pathOf = ({ pack }: Place) => join(this.#root, 'packs', pack.slice(0, 2), pack);
    const place = this.#places.get(id)?.find((candidate) => existsSync(pathOf(candidate)));
    if (place === undefined) throw new Error(`chunk ${id} is in no pack that is in an index`);
    const pack = readFileSync(pathOf(place));
    check(sha256(pack).toString('hex') === place.pack, 'the name of a pack');
    const content = this.readBlob(pack, place.slot, place.offset, place.entry);
    check(place.entry.readUInt8(32) === type, 'the type of a chunk');
    check(place.entry.readUInt32BE(36) === chunkSizeBytes, 'the chunk size of a chunk');
    const key = derive(derive(this.#master(1), 'dedup'), `chunk-id/${type}/${chunkSizeBytes}`);
    check(hmac(key, content).toString('hex') === id, 'the content of a chunk');
    return content;
  }

  /** The content of a blob of a pack. */
  readBlob(pack: Buffer, slot: number, offset: number, entry: Buffer): Buffer {
    const key = packKey(pack, this.#repositoryId, (generation) => this.#master(generation));
    const stored = openGcm(
      hmac(derive(key, 'blob'), Buffer.concat([u32(slot), entry])),
      Buffer.alloc(0),
      pack.subarray(offset, offset + entry.readUInt32BE(44) + 16),
    );
    return decompress(entry.readUInt8(33), stored, entry.readUInt32BE(40));
  }
}

/** The key of a pack, from its header. */
export function packKey(pack: Buffer, repositoryId: Buffer, master: (generation: number) => Buffer): Buffer {
  const header = pack.subarray(0, 128);
  check(header.toString('latin1', 0, 8) === 'STILLPCK' && header.readUInt16BE(8) === 1, 'a pack');
  check(header.subarray(16, 32).equals(repositoryId), 'the repository of a pack');
  const [kind, sealing, generation] = [header.readUInt8(10), header.readUInt8(11), header.readUInt32BE(12)];
  const secret =
    sealing === 0
      ? derive(master(generation), kind === 1 ? 'data' : 'tree')
      : diffieHellman({
          privateKey: createPrivateKey({
            key: Buffer.concat([x25519Private, derive(master(generation), 'seal')]),
            format: 'der',
            type: 'pkcs8',
          }),
          publicKey: createPublicKey({
            key: Buffer.concat([x25519Public, header.subarray(64, 96)]),
            format: 'der',
            type: 'spki',
          }),
        });
  const info = Buffer.concat([ascii('stillpoint/1/pack'), header.subarray(0, 112)]);
  const key = hkdf(secret, header.subarray(32, 64), info);
  check(
    hmac(derive(key, 'header'), header.subarray(0, 112)).subarray(0, 16).equals(header.subarray(112)),
    'the header of a pack',
  );
  return key;
}

/** The entries of a pack, from its table. */
export function packTable(pack: Buffer, key: Buffer): Buffer[] {
  check(pack.toString('latin1', pack.length - 8) === 'STILLEND', 'the end of a pack');
  const count = pack.readUInt32BE(pack.length - 16);
  const sealed = pack.subarray(pack.length - 16 - 48 - count * 48, pack.length - 16);
  const table = unseal(derive(key, 'table'), Buffer.concat([pack.subarray(0, 128), u32(count)]), sealed);
  return Array.from({ length: count }, (_, index) => table.subarray(index * 48, index * 48 + 48));
}

function configName(revision: number): string {
  return `config/${String(revision).padStart(8, '0')}`;
}
