import { timingSafeEqual } from 'node:crypto';
import { ByteReader, ByteWriter } from './bytes.ts';
import { type ChunkDomain, type ChunkType, chunkIdBytes, chunkTypeNumbers } from './chunkId.ts';
import { damaged, RepositoryError } from './errors.ts';
import type { KeyRing } from './keyRing.ts';
import { chunkBytesMax, isChunkBytes, packBytesMax, packEntriesMax, pagesMax } from './limits.ts';
import { deriveKey, hkdf, hmac, seal, sealBytes, tagBytes, unseal } from './seal.ts';

/*
 * A pack: header, blobs one behind the other, sealed table of the blobs, trailer (docs/FORMAT.md, "Packs").
 *
 * The key of a pack is made out of every byte of its header (repository, kind, generation, salt), the key of a blob
 * out of the pack's key, its slot and everything that the table says of it. A blob that stands in another
 * repository, another pack or another slot, or is described otherwise, therefore does not decrypt.
 */

/** Do not modify: the first eight bytes of every pack, and its last eight. */
const packMagic = Buffer.from('STILLPCK', 'latin1');
const endMagic = Buffer.from('STILLEND', 'latin1');

export const packVersion = 1;
export const packHeaderBytes = 128;
export const packTrailerBytes = 16;
export const packEntryBytes = 48;
export const packSaltBytes = 32;

/** `data`: chunks of streams. `tree`: pages and roots, which a reader wants without the data. */
export type PackKind = 'data' | 'tree';

/** `repository`: made from the repository's keys. `public`: sealed to its public key by a host that cannot read. */
export type PackSealing = 'repository' | 'public';

export type Codec = 'none' | 'zstd';

const packKindNumbers = { data: 1, tree: 2 } as const satisfies Record<PackKind, number>;
const sealingNumbers = { repository: 0, public: 1 } as const satisfies Record<PackSealing, number>;
const codecNumbers = { none: 0, zstd: 1 } as const satisfies Record<Codec, number>;

export interface PackHeader {
  readonly kind: PackKind;
  readonly sealing: PackSealing;
  readonly generation: number;
  /** 16 bytes. */
  readonly repositoryId: Buffer;
  /** Random, of this pack alone. */
  readonly salt: Buffer;
  /** Of sealing `public`; otherwise 32 zeros. */
  readonly ephemeralKey: Buffer;
}

/** A blob as the table describes it; its place follows from the blobs in front of it. */
export interface PackEntry {
  readonly id: Buffer;
  readonly domain: ChunkDomain;
  readonly codec: Codec;
  /** With which the codec compressed; a reader does not need it. */
  readonly level: number;
  /** Content before compression. */
  readonly rawBytes: number;
  /** Content after compression; the tag of 16 bytes follows it in the pack. */
  readonly storedBytes: number;
}

/** A blob and where it stands. */
export interface PlacedEntry extends PackEntry {
  readonly slot: number;
  /** From the beginning of the pack. */
  readonly offsetBytes: number;
}

/** Which kind of pack holds chunks of a type. */
export function packKindOf(type: ChunkType): PackKind {
  return type === 'data' ? 'data' : 'tree';
}

/** The keys of one pack. */
export class PackKeys {
  readonly #key: Buffer;
  readonly #blobSecret: Buffer;

  /** @param secret the repository's key for this kind of pack, or the shared secret of sealing `public` */
  constructor(header: PackHeader, secret: Uint8Array) {
    const info = Buffer.concat([Buffer.from('stillpoint/1/pack', 'latin1'), headerFields(header)]);
    this.#key = hkdf(secret, header.salt, info);
    this.#blobSecret = deriveKey(this.#key, 'blob');
  }

  /** The keys of a pack that was read; `null` when its header holds no key. */
  static of(header: PackHeader, keys: KeyRing): PackKeys | null {
    const secret =
      header.sealing === 'repository'
        ? keys.key(header.generation, header.kind)
        : keys.sharedSecret(header.generation, header.ephemeralKey);
    return secret === null ? null : new PackKeys(header, secret);
  }

  /** Of which the keys of all its blobs are made; see `blobKey`. */
  get blobSecret(): Buffer {
    return this.#blobSecret;
  }

  blobKey(slot: number, entry: PackEntry): Buffer {
    return blobKey(this.#blobSecret, slot, entry);
  }

  get tableKey(): Buffer {
    return deriveKey(this.#key, 'table');
  }

  headerMac(fields: Uint8Array): Buffer {
    return hmac(deriveKey(this.#key, 'header'), fields).subarray(0, 16);
  }
}

/** The key of one blob: of its slot, and of everything that the table says of it. */
export function blobKey(blobSecret: Uint8Array, slot: number, entry: PackEntry): Buffer {
  return hmac(blobSecret, new ByteWriter().u32(slot).bytes(encodeEntry(entry)).finish());
}

export function encodeHeader(header: PackHeader, keys: PackKeys): Buffer {
  const fields = headerFields(header);
  return Buffer.concat([fields, keys.headerMac(fields)]);
}

function headerFields(header: PackHeader): Buffer {
  return new ByteWriter()
    .bytes(packMagic)
    .u16(packVersion)
    .u8(packKindNumbers[header.kind])
    .u8(sealingNumbers[header.sealing])
    .u32(header.generation)
    .bytes(header.repositoryId)
    .bytes(header.salt)
    .bytes(header.ephemeralKey)
    .bytes(Buffer.alloc(16))
    .finish();
}

/**
 * Reads the header of a pack and makes the pack's keys.
 *
 * @throws RepositoryError REPOSITORY_DAMAGED, also for a pack of another repository; REPOSITORY_TOO_NEW
 */
export function openHeader(
  bytes: Buffer,
  what: string,
  context: { readonly repositoryId: Buffer; readonly keys: KeyRing },
): { readonly header: PackHeader; readonly keys: PackKeys } {
  const reader = new ByteReader(bytes, what);
  reader.expect(packMagic, 'pack');
  checkVersion(reader.u16(), packVersion, what);
  const kind = nameOf(packKindNumbers, reader.u8());
  const sealing = nameOf(sealingNumbers, reader.u8());
  const generation = reader.u32();
  const repositoryId = Buffer.from(reader.bytes(16));
  const salt = Buffer.from(reader.bytes(packSaltBytes));
  const ephemeralKey = Buffer.from(reader.bytes(32));
  reader.expect(Buffer.alloc(16), 'reserved bytes of zero');
  const mac = reader.bytes(16);
  reader.end();
  if (kind === null || sealing === null) throw reader.fail('a kind that is not known');
  if (generation === 0) throw reader.fail('no generation');
  if (!repositoryId.equals(context.repositoryId)) throw reader.fail('it belongs to another repository');
  const header: PackHeader = { kind, sealing, generation, repositoryId, salt, ephemeralKey };
  const keys = PackKeys.of(header, context.keys);
  if (keys === null || !timingSafeEqual(mac, keys.headerMac(bytes.subarray(0, 112))))
    throw reader.fail('its header is not authentic');
  return { header, keys };
}

/** The bytes behind the last blob. */
export function encodeTable(header: Buffer, entries: readonly PackEntry[], keys: PackKeys): Buffer {
  const table = new ByteWriter();
  for (const entry of entries) table.bytes(encodeEntry(entry));
  return new ByteWriter()
    .bytes(seal(keys.tableKey, tableBound(header, entries.length), table.finish()))
    .u32(entries.length)
    .u32(0)
    .bytes(endMagic)
    .finish();
}

/** How long the table and the trailer of a pack with so many blobs are. */
export function tailBytes(entryCount: number): number {
  return entryCount * packEntryBytes + sealBytes + packTrailerBytes;
}

/** How many blobs the pack has whose last bytes these are. */
export function readTrailer(bytes: Buffer, what: string): number {
  const reader = new ByteReader(bytes.subarray(-packTrailerBytes), what);
  const count = reader.u32();
  reader.expect(Buffer.alloc(4), 'reserved bytes of zero');
  reader.expect(endMagic, 'end of a pack');
  reader.end();
  if (count === 0 || count > packEntriesMax) throw reader.fail(`${count} blobs`);
  return count;
}

/**
 * Reads the table of a pack.
 *
 * @param tail the last `tailBytes` bytes of the pack
 */
export function openTable(
  tail: Buffer,
  what: string,
  pack: {
    readonly header: Buffer;
    readonly kind: PackKind;
    readonly keys: PackKeys;
    readonly sizeBytes: number;
  },
): readonly PlacedEntry[] {
  const count = readTrailer(tail, what);
  if (tail.length !== tailBytes(count)) throw damaged(what, 'its table has another length');
  const sealed = tail.subarray(0, tail.length - packTrailerBytes);
  const table = unseal(pack.keys.tableKey, tableBound(pack.header, count), sealed);
  if (table === null) throw damaged(what, 'its table is not authentic');
  const entries = placeEntries(readEntries(new ByteReader(table, what), count));
  checkPlaces(entries, what, pack);
  return entries;
}

/** Entries as they stand in tables and index objects. */
export function readEntries(reader: ByteReader, count: number): readonly PackEntry[] {
  return Array.from({ length: count }, () => decodeEntry(reader));
}

export function placeEntries(entries: readonly PackEntry[]): readonly PlacedEntry[] {
  let offsetBytes = packHeaderBytes;
  return entries.map((entry, slot) => {
    const placed = { ...entry, slot, offsetBytes };
    offsetBytes += entry.storedBytes + tagBytes;
    return placed;
  });
}

/** A pack holds what its kind says, and its blobs fill it without a gap. */
export function checkPlaces(
  entries: readonly PlacedEntry[],
  what: string,
  pack: { readonly kind: PackKind; readonly sizeBytes: number },
): void {
  const last = entries.at(-1);
  const end = last === undefined ? packHeaderBytes : last.offsetBytes + last.storedBytes + tagBytes;
  if (pack.sizeBytes > packBytesMax || end + tailBytes(entries.length) !== pack.sizeBytes)
    throw damaged(what, 'its blobs do not fill it');
  if (entries.some(({ domain }) => packKindOf(domain.type) !== pack.kind))
    throw damaged(what, 'it holds chunks of another kind');
}

export function encodeEntry(entry: PackEntry): Buffer {
  const bytes = Buffer.alloc(packEntryBytes);
  bytes.set(entry.id, 0);
  bytes[32] = chunkTypeNumbers[entry.domain.type];
  bytes[33] = codecNumbers[entry.codec];
  bytes[34] = entry.level;
  bytes.writeUInt32BE(entry.domain.chunkSizeBytes, 36);
  bytes.writeUInt32BE(entry.rawBytes, 40);
  bytes.writeUInt32BE(entry.storedBytes, 44);
  return bytes;
}

function decodeEntry(reader: ByteReader): PackEntry {
  const id = Buffer.from(reader.bytes(chunkIdBytes));
  const type = nameOf(chunkTypeNumbers, reader.u8());
  const codec = nameOf(codecNumbers, reader.u8());
  const level = reader.u8();
  reader.expect(Buffer.alloc(1), 'reserved byte of zero');
  const chunkSizeBytes = reader.u32();
  const rawBytes = reader.u32();
  const storedBytes = reader.u32();
  if (type === null || codec === null || !isChunkBytes(chunkSizeBytes))
    throw reader.fail('a chunk of no known type');
  const domain = { type, chunkSizeBytes };
  if (rawBytes === 0 || rawBytes > rawBytesMax(domain)) throw reader.fail(`a chunk of ${rawBytes} bytes`);
  if (codec === 'none' ? storedBytes !== rawBytes : storedBytes === 0 || storedBytes >= rawBytes)
    throw reader.fail(`a chunk of ${rawBytes} bytes that takes ${storedBytes}`);
  return { id, domain, codec, level, rawBytes, storedBytes };
}

/** The longest content of a chunk of this domain. */
export function rawBytesMax({ type, chunkSizeBytes }: ChunkDomain): number {
  if (type === 'data') return chunkSizeBytes;
  return type === 'page' ? 1024 * chunkIdBytes : Math.min(16 + pagesMax * chunkIdBytes, chunkBytesMax);
}

function tableBound(header: Buffer, count: number): Buffer {
  return new ByteWriter().bytes(header).u32(count).finish();
}

/** Refuses what a later version wrote. */
export function checkVersion(version: number, known: number, what: string): void {
  if (version === known) return;
  if (version === 0) throw damaged(what, 'no version');
  throw new RepositoryError(
    'REPOSITORY_TOO_NEW',
    `${what} has version ${version}, or is damaged; this one reads ${known}`,
    {
      hint: 'use a newer stillpoint for this repository; if none has ever written to it, this is damage',
    },
  );
}

/** The name that a number stands for, or `null`. */
export function nameOf<Name extends string>(
  numbers: Readonly<Record<Name, number>>,
  number: number,
): Name | null {
  for (const name in numbers) if (numbers[name] === number) return name;
  return null;
}
