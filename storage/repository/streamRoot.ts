import { ByteReader, ByteWriter } from './bytes.ts';
import { chunkIdBytes } from './chunkId.ts';
import { damaged } from './errors.ts';
import { idsPerPage, isChunkBytes, pagesMax } from './limits.ts';

/*
 * A stream is what a volume, a memory state or a file holds. Its root names its pages, a page the ids of up to
 * 1,024 chunks; both are stored by their content, like chunks. An increment writes the pages that changed and a
 * root, and shares all others. Zeros are the id of zeros, in pages and roots alike, and take no space.
 */

/** Content of a root. */
export interface StreamRoot {
  readonly sizeBytes: number;
  readonly chunkSizeBytes: number;
  readonly pageIds: readonly Buffer[];
}

export function chunkCountOf(sizeBytes: number, chunkSizeBytes: number): number {
  return Math.ceil(sizeBytes / chunkSizeBytes);
}

export function pageCountOf(sizeBytes: number, chunkSizeBytes: number): number {
  return Math.ceil(chunkCountOf(sizeBytes, chunkSizeBytes) / idsPerPage);
}

/** Ids on a page: all pages are full but the last. */
export function idCountOf(root: Pick<StreamRoot, 'sizeBytes' | 'chunkSizeBytes'>, page: number): number {
  return Math.min(idsPerPage, chunkCountOf(root.sizeBytes, root.chunkSizeBytes) - page * idsPerPage);
}

/** Length of a chunk: all have the chunk size but the last. */
export function chunkLengthOf(root: Pick<StreamRoot, 'sizeBytes' | 'chunkSizeBytes'>, chunk: number): number {
  return Math.min(root.chunkSizeBytes, root.sizeBytes - chunk * root.chunkSizeBytes);
}

export function encodeRoot(root: StreamRoot): Buffer {
  const writer = new ByteWriter().u64(root.sizeBytes).u32(root.chunkSizeBytes).u32(root.pageIds.length);
  for (const id of root.pageIds) writer.bytes(id);
  return writer.finish();
}

/** @throws RepositoryError REPOSITORY_DAMAGED */
export function decodeRoot(bytes: Buffer, what: string): StreamRoot {
  const reader = new ByteReader(bytes, what);
  const sizeBytes = reader.u64();
  const chunkSizeBytes = reader.u32();
  if (!isChunkBytes(chunkSizeBytes)) throw reader.fail(`chunks of ${chunkSizeBytes} bytes`);
  const count = reader.count(pagesMax, chunkIdBytes);
  if (count !== pageCountOf(sizeBytes, chunkSizeBytes)) throw reader.fail('it has not the pages of its size');
  const pageIds = Array.from({ length: count }, () => Buffer.from(reader.bytes(chunkIdBytes)));
  reader.end();
  return { sizeBytes, chunkSizeBytes, pageIds };
}

export function encodePage(ids: readonly Buffer[]): Buffer {
  return Buffer.concat(ids);
}

/** @throws RepositoryError REPOSITORY_DAMAGED */
export function decodePage(bytes: Buffer, idCount: number, what: string): readonly Buffer[] {
  if (bytes.length !== idCount * chunkIdBytes)
    throw damaged(what, `a page of ${bytes.length} bytes where ${idCount} ids stand`);
  return Array.from({ length: idCount }, (_, index) =>
    bytes.subarray(index * chunkIdBytes, (index + 1) * chunkIdBytes),
  );
}
