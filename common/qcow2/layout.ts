import type { Extent } from '../volumeSource.ts';

/*
 * A qcow2 image that is written once, front to back: header, refcount table, refcount blocks, L1 table, L2
 * tables, data in the guest's order. No gaps, no features, no backing file, every cluster with refcount 1.
 * The format: QEMU, docs/interop/qcow2.txt.
 */

export const clusterBytes = 64 * 1024;
/** qcow2 counts sizes in sectors. */
const sectorBytes = 512;
/** QEMU refuses refcount tables above 8 MiB and L1 tables above 32 MiB; both are far away from here. */
const maxVirtualSizeBytes = 2 ** 50;

/** Entries of 8 bytes in one cluster of an L1, L2 or refcount table. */
const tableEntries = clusterBytes / 8;
/** Refcounts of 16 bits in one refcount block. */
const blockEntries = clusterBytes / 2;

const magic = 0x514649fb; // "QFI\xfb"
const version = 3;
const headerBytes = 104;
const refcountOrder = 4;
/** Bit 63 of an entry, in its upper half: the cluster's refcount is 1, so it may be written in place. */
const copied = 0x8000_0000;

/** Where everything is in an image. A cluster number times `clusterBytes` is a position in its file. */
export interface Qcow2Layout {
  readonly virtualSizeBytes: number;
  readonly fileSizeBytes: number;
  readonly clusters: {
    readonly refcountTable: number;
    readonly refcountBlocks: number;
    readonly l1Table: number;
    readonly l2Tables: number;
    readonly data: number;
  };
  /** What the volume holds, as it was planned with. */
  readonly extents: readonly Extent[];
}

/** A stretch of the guest's clusters, all of which are stored: from `first` to before `end`. */
export interface ClusterRun {
  readonly first: number;
  readonly end: number;
}

/**
 * Plans the image of a volume. A cluster is left out only if all of it is known to be zero. Takes time in
 * proportion to the number of extents, and no memory for clusters.
 *
 * @throws Error when the extents are not exactly the volume, in order and without gaps, or when its size is not
 *   a multiple of 512 bytes or above 1 PiB: what asked for it is wrong, and a guess would lose data
 */
export function planQcow2(virtualSizeBytes: number, extents: readonly Extent[]): Qcow2Layout {
  assertVirtualSize(virtualSizeBytes);
  assertWhole(virtualSizeBytes, extents);
  let data = 0;
  let l2Tables = 0;
  let lastTable = -1;
  for (const { first, end } of storedRuns(extents)) {
    data += end - first;
    const [from, to] = [Math.floor(first / tableEntries), Math.floor((end - 1) / tableEntries)];
    l2Tables += to - from + (from === lastTable ? 0 : 1);
    lastTable = to;
  }
  const l1Table = Math.ceil(l1Entries(virtualSizeBytes) / tableEntries);
  // Refcounts count their own clusters too: they grow until they cover themselves.
  let [refcountTable, refcountBlocks, total] = [0, 0, 0];
  for (;;) {
    total = 1 + refcountTable + refcountBlocks + l1Table + l2Tables + data;
    const blocks = Math.ceil(total / blockEntries);
    const table = Math.ceil(blocks / tableEntries);
    if (blocks === refcountBlocks && table === refcountTable) break;
    [refcountTable, refcountBlocks] = [table, blocks];
  }
  return {
    virtualSizeBytes,
    fileSizeBytes: total * clusterBytes,
    clusters: { refcountTable, refcountBlocks, l1Table, l2Tables, data },
    extents,
  };
}

/** One, too, for a volume of no bytes: an image without L1 table is legal, but unusual. */
function l1Entries(virtualSizeBytes: number): number {
  return Math.max(1, Math.ceil(virtualSizeBytes / (tableEntries * clusterBytes)));
}

function assertVirtualSize(virtualSizeBytes: number): void {
  if (!Number.isSafeInteger(virtualSizeBytes) || virtualSizeBytes < 0 || virtualSizeBytes % sectorBytes !== 0)
    throw new Error(`no size for a qcow2 image: ${virtualSizeBytes} bytes`);
  if (virtualSizeBytes > maxVirtualSizeBytes)
    throw new Error(`a volume of ${virtualSizeBytes} bytes is larger than ${maxVirtualSizeBytes}`);
}

function assertWhole(virtualSizeBytes: number, extents: readonly Extent[]): void {
  let expectedBytes = 0;
  for (const { offsetBytes, lengthBytes } of extents) {
    if (offsetBytes !== expectedBytes)
      throw new Error(`the extents go on at ${offsetBytes} instead of ${expectedBytes}`);
    if (!Number.isSafeInteger(lengthBytes) || lengthBytes <= 0)
      throw new Error(`the extent at ${offsetBytes} has ${lengthBytes} bytes`);
    expectedBytes += lengthBytes;
  }
  if (expectedBytes !== virtualSizeBytes)
    throw new Error(`the extents end at ${expectedBytes}, the volume at ${virtualSizeBytes}`);
}

/** The clusters that are stored, in the guest's order; runs that touch are one. */
export function* storedRuns(extents: readonly Extent[]): Generator<ClusterRun> {
  let [first, end] = [0, 0];
  for (const { offsetBytes, lengthBytes, zero } of extents) {
    if (zero) continue;
    const from = Math.floor(offsetBytes / clusterBytes);
    // Two extents may share a cluster, so `from` may be before `end`.
    if (from > end) {
      if (end > first) yield { first, end };
      first = from;
    }
    end = Math.ceil((offsetBytes + lengthBytes) / clusterBytes);
  }
  if (end > first) yield { first, end };
}

/** Everything in front of the data, cluster by cluster in the order of the file; each buffer is a new one. */
export function* metadataClusters(layout: Qcow2Layout): Generator<Buffer> {
  const { clusters } = layout;
  const firstBlock = 1 + clusters.refcountTable;
  const l1Table = firstBlock + clusters.refcountBlocks;
  yield headerCluster(layout, l1Table);
  yield* tableClusters(clusters.refcountTable, refcountTableEntries(firstBlock, clusters.refcountBlocks));
  yield* refcountBlockClusters(layout);
  yield* tableClusters(clusters.l1Table, l1TableEntries(layout, l1Table + clusters.l1Table));
  yield* l2TableClusters(layout, l1Table + clusters.l1Table + clusters.l2Tables);
}

function headerCluster(layout: Qcow2Layout, l1Table: number): Buffer {
  // What is not set is zero: no backing file, encryption, snapshots, features or header extensions.
  const header = Buffer.alloc(clusterBytes);
  header.writeUInt32BE(magic, 0);
  header.writeUInt32BE(version, 4);
  header.writeUInt32BE(Math.log2(clusterBytes), 20);
  header.writeBigUInt64BE(BigInt(layout.virtualSizeBytes), 24);
  header.writeUInt32BE(l1Entries(layout.virtualSizeBytes), 36);
  header.writeBigUInt64BE(BigInt(l1Table * clusterBytes), 40);
  header.writeBigUInt64BE(BigInt(clusterBytes), 48); // the refcount table follows the header
  header.writeUInt32BE(layout.clusters.refcountTable, 56);
  header.writeUInt32BE(refcountOrder, 96);
  header.writeUInt32BE(headerBytes, 100);
  return header;
}

/** An entry of a table: where it stands, the cluster that it names, and its upper bits. */
interface TableEntry {
  readonly index: number;
  readonly cluster: number;
  readonly flags: number;
}

function* refcountTableEntries(firstBlock: number, blocks: number): Generator<TableEntry> {
  for (let index = 0; index < blocks; index += 1) yield { index, cluster: firstBlock + index, flags: 0 };
}

function* l1TableEntries(layout: Qcow2Layout, firstL2Table: number): Generator<TableEntry> {
  let [cluster, lastIndex] = [firstL2Table, -1];
  for (const { first, end } of storedRuns(layout.extents)) {
    const from = Math.max(Math.floor(first / tableEntries), lastIndex + 1);
    const to = Math.floor((end - 1) / tableEntries);
    for (let index = from; index <= to; index += 1) {
      yield { index, cluster, flags: copied };
      cluster += 1;
    }
    lastIndex = to;
  }
}

/** A table of so many clusters, from its entries in rising order. */
function* tableClusters(count: number, entries: Iterable<TableEntry>): Generator<Buffer> {
  let table = Buffer.alloc(clusterBytes);
  let number = 0;
  for (const { index, cluster, flags } of entries) {
    for (; number < Math.floor(index / tableEntries); number += 1) {
      yield table;
      table = Buffer.alloc(clusterBytes);
    }
    writeEntry(table, index % tableEntries, cluster, flags);
  }
  for (; number < count; number += 1) {
    yield table;
    table = Buffer.alloc(clusterBytes);
  }
}

/** Every cluster of the file is used once; behind its end there is nothing. */
function* refcountBlockClusters(layout: Qcow2Layout): Generator<Buffer> {
  const one = Buffer.from([0, 1]);
  let left = layout.fileSizeBytes / clusterBytes;
  for (; left > 0; left -= Math.min(left, blockEntries)) {
    yield Buffer.alloc(clusterBytes).fill(one, 0, Math.min(left, blockEntries) * one.length);
  }
}

function* l2TableClusters(layout: Qcow2Layout, firstData: number): Generator<Buffer> {
  let table: Buffer | null = null;
  let number = -1;
  let cluster = firstData;
  for (const { first, end } of storedRuns(layout.extents)) {
    for (let guest = first; guest < end; guest += 1) {
      if (table === null || Math.floor(guest / tableEntries) !== number) {
        if (table !== null) yield table;
        table = Buffer.alloc(clusterBytes);
        number = Math.floor(guest / tableEntries);
      }
      writeEntry(table, guest % tableEntries, cluster, copied);
      cluster += 1;
    }
  }
  if (table !== null) yield table;
}

/** In two halves: a BigInt for each of millions of entries would cost more than all the rest. */
function writeEntry(table: Buffer, index: number, cluster: number, flags: number): void {
  const position = cluster * clusterBytes;
  table.writeUInt32BE(Math.floor(position / 2 ** 32) + flags, index * 8);
  table.writeUInt32BE(position % 2 ** 32, index * 8 + 4);
}
