import type { EditedFile } from './editedFile.ts';
import { Qcow2Clusters } from './qcow2Clusters.ts';
import { ImageUnsuitable, readGeometry, type Qcow2Geometry } from './qcow2Geometry.ts';
import { parseEntry, type TableEntry, writeTableEntry } from './qcow2Entry.ts';

/**
 * Changes the content of a standalone qcow2 image that nobody else has open: clusters that have a place are
 * written in place, new ones get one, and those that become zero give theirs back. The format: QEMU,
 * docs/interop/qcow2.txt.
 */
export class Qcow2Editor {
  readonly #file: EditedFile;
  readonly #geometry: Qcow2Geometry;
  readonly #clusters: Qcow2Clusters;
  /** Of the guest's last L2 table, so that it is not looked up for each cluster. */
  #lastTable: { readonly index: number; readonly offsetBytes: number } | null = null;

  private constructor(file: EditedFile, geometry: Qcow2Geometry) {
    this.#file = file;
    this.#geometry = geometry;
    this.#clusters = new Qcow2Clusters(file, geometry);
  }

  /** @throws ImageUnsuitable for an image that is not plain enough; ChunkDamaged */
  static async open(file: EditedFile): Promise<Qcow2Editor> {
    return new Qcow2Editor(file, await readGeometry(file));
  }

  get virtualSizeBytes(): number {
    return this.#geometry.virtualSizeBytes;
  }

  /** Writes into the volume. @throws ImageUnsuitable, ChunkDamaged */
  async write(offsetBytes: number, data: Buffer): Promise<void> {
    const { clusterBytes } = this.#geometry;
    for (let done = 0; done < data.length; ) {
      const inside = (offsetBytes + done) % clusterBytes;
      const piece = data.subarray(done, done + clusterBytes - inside);
      const isZero = piece.equals(this.#clusters.zeros.subarray(0, piece.length));
      await this.#change(offsetBytes + done, piece.length, isZero ? null : piece);
      done += piece.length;
    }
  }

  /**
   * Makes a stretch of the volume zero. What is zero already costs the reading of its L2 table only.
   * @throws ImageUnsuitable, ChunkDamaged
   */
  async zero(offsetBytes: number, lengthBytes: number): Promise<void> {
    const { clusterBytes, tableEntries } = this.#geometry;
    const endBytes = offsetBytes + lengthBytes;
    for (let at = offsetBytes; at < endBytes; ) {
      const tableEndBytes = Math.min(endBytes, (this.#tableIndex(at) + 1) * clusterBytes * tableEntries);
      for (const used of await this.#usedClusters(at, tableEndBytes)) {
        const from = Math.max(at, used);
        await this.#change(from, Math.min(tableEndBytes, used + clusterBytes) - from, null);
      }
      at = tableEndBytes;
    }
  }

  /** Where the clusters begin that have an entry; the stretch lies within one L2 table. */
  async #usedClusters(offsetBytes: number, endBytes: number): Promise<readonly number[]> {
    const { clusterBytes } = this.#geometry;
    const table = await this.#tableOf(offsetBytes);
    if (table === null) return [];
    const first = this.#indexInTable(offsetBytes);
    const start = offsetBytes - (offsetBytes % clusterBytes);
    const count = Math.ceil((endBytes - start) / clusterBytes);
    const entries = await this.#file.read(table + first * 8, count * 8);
    const used: number[] = [];
    for (let index = 0; index < count; index += 1) {
      if (entries.readUInt32BE(index * 8) !== 0 || entries.readUInt32BE(index * 8 + 4) !== 0)
        used.push(start + index * clusterBytes);
    }
    return used;
  }

  /** Changes a stretch inside of one cluster; `null` is zeros. */
  async #change(offsetBytes: number, lengthBytes: number, data: Buffer | null): Promise<void> {
    const { clusterBytes, virtualSizeBytes } = this.#geometry;
    if (offsetBytes + lengthBytes > virtualSizeBytes)
      throw new Error(`${lengthBytes} bytes at ${offsetBytes} are beyond a volume of ${virtualSizeBytes}`);
    const inside = offsetBytes % clusterBytes;
    const entry = await this.#entryOf(offsetBytes);
    if (entry === null || entry.offsetBytes === 0) {
      if (data !== null) await this.#place(offsetBytes, data);
      else if (entry?.zero === true && this.#isWhole(offsetBytes, lengthBytes))
        await this.#setEntry(offsetBytes, 0);
      return;
    }
    if (data === null && this.#isWhole(offsetBytes, lengthBytes)) {
      await this.#setEntry(offsetBytes, 0);
      await this.#clusters.free(entry.offsetBytes);
    } else if (!entry.zero) {
      const bytes = data ?? this.#clusters.zeros.subarray(0, lengthBytes);
      await this.#file.write(entry.offsetBytes + inside, bytes);
    } else if (data !== null) {
      // It has a place that is not used while it is zero.
      await this.#file.write(entry.offsetBytes, this.#wholeCluster(inside, data));
      await this.#setEntry(offsetBytes, entry.offsetBytes);
    }
  }

  /** All of its cluster, or all of it that is in the volume. */
  #isWhole(offsetBytes: number, lengthBytes: number): boolean {
    const { clusterBytes, virtualSizeBytes } = this.#geometry;
    const endBytes = offsetBytes + lengthBytes;
    return (
      offsetBytes % clusterBytes === 0 && (lengthBytes === clusterBytes || endBytes === virtualSizeBytes)
    );
  }

  #wholeCluster(inside: number, data: Buffer): Buffer {
    if (data.length === this.#geometry.clusterBytes) return data;
    const cluster = Buffer.alloc(this.#geometry.clusterBytes);
    data.copy(cluster, inside);
    return cluster;
  }

  /** Gives a cluster of the guest a place. */
  async #place(offsetBytes: number, data: Buffer): Promise<void> {
    const table = (await this.#tableOf(offsetBytes)) ?? (await this.#addTable(offsetBytes));
    const position = await this.#clusters.allocate();
    await this.#file.write(position, this.#wholeCluster(offsetBytes % this.#geometry.clusterBytes, data));
    await writeTableEntry(this.#file, table + this.#indexInTable(offsetBytes) * 8, position);
  }

  /** What the L2 table says of a position of the guest; `null` where there is no table. */
  async #entryOf(offsetBytes: number): Promise<TableEntry | null> {
    const table = await this.#tableOf(offsetBytes);
    if (table === null) return null;
    const entry = parseEntry(await this.#file.readWord(table + this.#indexInTable(offsetBytes) * 8));
    if (entry.compressed) throw new ImageUnsuitable('it is compressed');
    this.#requireOwn(entry);
    return entry;
  }

  async #setEntry(offsetBytes: number, position: number): Promise<void> {
    const table = await this.#tableOf(offsetBytes);
    if (table === null) throw new Error('there is no table');
    await writeTableEntry(this.#file, table + this.#indexInTable(offsetBytes) * 8, position);
  }

  #indexInTable(offsetBytes: number): number {
    const { clusterBytes, tableEntries } = this.#geometry;
    return Math.floor(offsetBytes / clusterBytes) % tableEntries;
  }

  #tableIndex(offsetBytes: number): number {
    const { clusterBytes, tableEntries } = this.#geometry;
    return Math.floor(offsetBytes / (clusterBytes * tableEntries));
  }

  /** Position of the L2 table of a position of the guest. */
  async #tableOf(offsetBytes: number): Promise<number | null> {
    const index = this.#tableIndex(offsetBytes);
    if (this.#lastTable?.index === index) return this.#lastTable.offsetBytes;
    const entry = parseEntry(await this.#file.readWord(this.#geometry.l1TableBytes + index * 8));
    if (entry.offsetBytes === 0) return null;
    this.#requireOwn(entry);
    this.#lastTable = { index, offsetBytes: entry.offsetBytes };
    return entry.offsetBytes;
  }

  async #addTable(offsetBytes: number): Promise<number> {
    const index = this.#tableIndex(offsetBytes);
    const table = await this.#clusters.allocate();
    await this.#file.write(table, this.#clusters.zeros);
    await writeTableEntry(this.#file, this.#geometry.l1TableBytes + index * 8, table);
    this.#lastTable = { index, offsetBytes: table };
    return table;
  }

  #requireOwn({ offsetBytes, copied }: TableEntry): void {
    if (offsetBytes === 0) return;
    if (!copied) throw new ImageUnsuitable('clusters of it are used more than once');
    if (offsetBytes % this.#geometry.clusterBytes !== 0)
      throw new ImageUnsuitable('its tables point between clusters');
  }
}
