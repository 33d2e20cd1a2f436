import { hash } from 'node:crypto';
import type { ChunkNamer } from './chunkId.ts';
import { decode } from './codec.ts';
import { damaged } from './errors.ts';
import type { KeyRing } from './keyRing.ts';
import { packBytesMax } from './limits.ts';
import {
  openHeader,
  openTable,
  type PackKeys,
  type PackKind,
  type PlacedEntry,
  packHeaderBytes,
  packTrailerBytes,
  readTrailer,
  tailBytes,
} from './packFormat.ts';
import { decryptOnce, sealBytes, tagBytes } from './seal.ts';

/** What it takes to read packs of a repository. */
export interface PackContext {
  readonly repositoryId: Buffer;
  readonly keys: KeyRing;
}

/** Reads bytes of a pack that stands somewhere; rejects when they are not all there. */
export type ReadRange = (offsetBytes: number, lengthBytes: number) => Promise<Buffer>;

/** The shortest thing that can be a pack. */
export const packBytesMin = packHeaderBytes + 1 + tagBytes + sealBytes + packTrailerBytes;

/** What a pack says it holds. */
export interface PackContents {
  readonly kind: PackKind;
  readonly keys: PackKeys;
  readonly entries: readonly PlacedEntry[];
}

/**
 * Reads header and table of a pack, not its blobs.
 *
 * @param what names it in errors
 * @throws RepositoryError REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW
 */
export async function readPackContents(
  sizeBytes: number,
  read: ReadRange,
  what: string,
  context: PackContext,
): Promise<PackContents> {
  if (sizeBytes < packBytesMin || sizeBytes > packBytesMax)
    throw damaged(what, `no pack is ${sizeBytes} bytes long`);
  const headerBytes = await read(0, packHeaderBytes);
  const { header, keys } = openHeader(headerBytes, what, context);
  const count = readTrailer(await read(sizeBytes - packTrailerBytes, packTrailerBytes), what);
  const tailLength = tailBytes(count);
  if (packHeaderBytes + tailLength > sizeBytes) throw damaged(what, 'its table does not fit into it');
  const tail = await read(sizeBytes - tailLength, tailLength);
  const { kind } = header;
  return { kind, keys, entries: openTable(tail, what, { header: headerBytes, kind, keys, sizeBytes }) };
}

/** The keys of a pack, from its header. */
export function packKeysOf(headerBytes: Buffer, what: string, context: PackContext): PackKeys {
  return openHeader(headerBytes, what, context).keys;
}

/** The content of a blob: decrypted, unpacked, not yet compared with its id. */
export function openBlob(blob: Buffer, entry: PlacedEntry, keys: PackKeys, what: string): Buffer {
  const stored = decryptOnce(keys.blobKey(entry.slot, entry), blob);
  if (stored === null) throw damaged(what, `the blob in slot ${entry.slot} is not authentic`);
  const content = decode(stored, entry.codec, entry.rawBytes);
  if (content === null) throw damaged(what, `the blob in slot ${entry.slot} does not unpack`);
  return content;
}

/** As `openBlob`, and the content is what its id stands for (promise: every byte is compared when read). */
export function openChunk(
  blob: Buffer,
  entry: PlacedEntry,
  keys: PackKeys,
  namer: ChunkNamer,
  what: string,
): Buffer {
  const content = openBlob(blob, entry, keys, what);
  if (!namer.idOf(entry.domain, content).equals(entry.id))
    throw damaged(what, `the content in slot ${entry.slot} is not that of its id`);
  return content;
}

/**
 * Reads a whole pack and compares every byte: its name, its table and each chunk.
 *
 * @param id what its name says
 */
export async function checkWholePack(
  bytes: Buffer,
  id: Buffer,
  namer: ChunkNamer,
  context: PackContext,
): Promise<PackContents> {
  const what = `pack ${id.toString('hex')}`;
  if (!hash('sha256', bytes, 'buffer').equals(id)) throw damaged(what, 'its bytes are not those of its name');
  const read: ReadRange = (offset, length) => Promise.resolve(bytes.subarray(offset, offset + length));
  const contents = await readPackContents(bytes.length, read, what, context);
  for (const entry of contents.entries) {
    const blob = bytes.subarray(entry.offsetBytes, entry.offsetBytes + entry.storedBytes + tagBytes);
    openChunk(blob, entry, contents.keys, namer, what);
  }
  return contents;
}
