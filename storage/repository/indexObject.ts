import { ByteReader, ByteWriter } from './bytes.ts';
import {
  checkPlaces,
  encodeEntry,
  nameOf,
  type PackKind,
  type PlacedEntry,
  packEntryBytes,
  placeEntries,
  readEntries,
} from './packFormat.ts';
import { indexPacksMax, packEntriesMax } from './limits.ts';

/** What an index says of a pack: the same as the pack's own table, to be had without asking the pack. */
export interface IndexedPack {
  /** SHA-256 of the pack. */
  readonly id: Buffer;
  readonly kind: PackKind;
  readonly sizeBytes: number;
  readonly entries: readonly PlacedEntry[];
}

/** Content of an index object. */
export interface IndexObject {
  /** Ids of index objects that this one replaces. */
  readonly supersedes: readonly Buffer[];
  readonly packs: readonly IndexedPack[];
}

/**
 * Content of one index object, about, where there is a choice: a reader takes up to `objectBytesMax`. It is reached
 * before `indexPacksMax`, also by packs of one chunk.
 */
export const indexBytesTarget = 8 * 1024 * 1024;

const kindNumbers = { data: 1, tree: 2 } as const satisfies Record<PackKind, number>;
const packBytes = 32 + 8 + 1 + 4;

/** What a pack takes in an index object. */
export function indexedBytes(pack: IndexedPack): number {
  return packBytes + pack.entries.length * packEntryBytes;
}

/** Packs in groups, each of which one index object can name. @param targetBytes from here on a group is large enough */
export function indexGroups(
  packs: readonly IndexedPack[],
  targetBytes = indexBytesTarget,
): readonly (readonly IndexedPack[])[] {
  const groups: IndexedPack[][] = [];
  let group: IndexedPack[] = [];
  let bytes = 0;
  for (const pack of packs) {
    if (group.length === 0 || bytes >= targetBytes) {
      group = [];
      groups.push(group);
      bytes = 0;
    }
    group.push(pack);
    bytes += indexedBytes(pack);
  }
  return groups;
}

/** @throws RangeError for more than a reader takes: who has so much makes several, see `indexGroups` */
export function encodeIndex(index: IndexObject): Buffer {
  if (Math.max(index.packs.length, index.supersedes.length) > indexPacksMax)
    throw new RangeError(`an index of ${index.packs.length} packs`);
  const writer = new ByteWriter().u32(index.supersedes.length);
  for (const id of index.supersedes) writer.bytes(id);
  writer.u32(index.packs.length);
  for (const pack of index.packs) {
    writer.bytes(pack.id).u64(pack.sizeBytes).u8(kindNumbers[pack.kind]).u32(pack.entries.length);
    for (const entry of pack.entries) writer.bytes(encodeEntry(entry));
  }
  return writer.finish();
}

/** @throws RepositoryError REPOSITORY_DAMAGED */
export function decodeIndex(bytes: Buffer, what: string): IndexObject {
  const reader = new ByteReader(bytes, what);
  const superseded = reader.count(indexPacksMax, 32);
  const supersedes = Array.from({ length: superseded }, () => Buffer.from(reader.bytes(32)));
  const count = reader.count(indexPacksMax, packBytes);
  const packs = Array.from({ length: count }, (): IndexedPack => {
    const id = Buffer.from(reader.bytes(32));
    const sizeBytes = reader.u64();
    const kind = nameOf(kindNumbers, reader.u8());
    if (kind === null) throw reader.fail('a pack of a kind that is not known');
    const entryCount = reader.count(packEntriesMax, packEntryBytes);
    const entries = placeEntries(readEntries(reader, entryCount));
    checkPlaces(entries, what, { kind, sizeBytes });
    return { id, kind, sizeBytes, entries };
  });
  reader.end();
  return { supersedes, packs };
}
