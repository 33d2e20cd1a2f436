import { hash } from 'node:crypto';
import { type BlobFault, openCompared } from './blob.ts';
import type { ChunkNamer } from './chunkId.ts';
import { type ChunkTask, perform, type ResultOf } from './chunkTasks.ts';
import { damaged, type RepositoryError } from './errors.ts';
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
import { sealBytes, tagBytes } from './seal.ts';

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

/** The content of a blob, and it is what its id stands for (promise: every byte is compared when read). */
export function openChunk(
  blob: Buffer,
  entry: PlacedEntry,
  keys: PackKeys,
  namer: ChunkNamer,
  what: string,
): Buffer {
  const { id, codec, rawBytes, slot } = entry;
  const idKey = namer.keyOf(entry.domain);
  const content = openCompared(blob, { key: keys.blobKey(slot, entry), codec, rawBytes, id, idKey });
  if (typeof content === 'string') throw damagedBlob(what, slot, content);
  return content;
}

/** The error of a blob that is not what was stored. */
export function damagedBlob(what: string, slot: number, fault: BlobFault): RepositoryError {
  const subject = fault === 'is not that of its id' ? 'the content' : 'the blob';
  return damaged(what, `${subject} in slot ${slot} ${fault}`);
}

/** Does a task somewhere; see `ChunkWork`. */
export type RunTask = <Task extends ChunkTask>(task: Task, bytes: number) => Promise<ResultOf<Task>>;

/**
 * Reads a whole pack and compares every byte: its name, its table and each chunk.
 *
 * @param bytes are used up
 * @param id what its name says
 * @param run does what takes time; here and now unless told
 */
export async function checkWholePack(
  bytes: Buffer,
  id: Buffer,
  namer: ChunkNamer,
  context: PackContext,
  run: RunTask = async (task) => perform(task),
): Promise<PackContents> {
  const what = `pack ${id.toString('hex')}`;
  const read: ReadRange = (offset, length) => Promise.resolve(bytes.subarray(offset, offset + length));
  let contents: PackContents;
  try {
    contents = await readPackContents(bytes.length, read, what, context);
  } catch (error) {
    // Says more, if it is so.
    if (!hash('sha256', bytes, 'buffer').equals(id)) throw otherBytes(what);
    throw error;
  }
  const { keys, entries } = contents;
  const blobs = entries.map((entry) => ({
    offsetBytes: entry.offsetBytes,
    lengthBytes: entry.storedBytes + tagBytes,
    key: keys.blobKey(entry.slot, entry),
    codec: entry.codec,
    rawBytes: entry.rawBytes,
    id: entry.id,
    idKey: namer.keyOf(entry.domain),
  }));
  const faults = await run({ kind: 'open', bytes, blobs, digest: id }, bytes.length);
  if (typeof faults === 'string') throw otherBytes(what);
  for (const [slot, fault] of faults.entries()) if (fault !== null) throw damagedBlob(what, slot, fault);
  return contents;
}

function otherBytes(what: string): RepositoryError {
  return damaged(what, 'its bytes are not those of its name');
}
