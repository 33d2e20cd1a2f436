import type { EditedFile } from './editedFile.ts';
import { parseEntry, writeTableEntry } from './qcow2Entry.ts';
import { ImageUnsuitable, type Qcow2Geometry } from './qcow2Geometry.ts';

/** Bytes of one refcount. */
const refcountBytes = 2;

/** Which clusters of an image's file are in use, by their refcounts. */
export class Qcow2Clusters {
  /** One cluster of zeros, for reading only. */
  readonly zeros: Buffer;
  readonly #file: EditedFile;
  readonly #geometry: Qcow2Geometry;
  readonly #blockEntries: number;
  /** Number of the first cluster behind the end of the file. */
  #end: number;
  /** Clusters that we have freed. */
  readonly #freed = new Set<number>();
  readonly #free: AsyncGenerator<number, void>;

  constructor(file: EditedFile, geometry: Qcow2Geometry) {
    this.#file = file;
    this.#geometry = geometry;
    this.#blockEntries = geometry.clusterBytes / refcountBytes;
    this.#end = Math.ceil(file.sizeBytes / geometry.clusterBytes);
    this.zeros = Buffer.alloc(geometry.clusterBytes);
    this.#free = this.#findFree(this.#end);
  }

  /**
   * A cluster that is not used, marked as used once; what stands in it is old. Looks for one that was freed before
   * it makes the file longer, or a lineage of a guest that discards would grow for ever.
   * @returns its position in the file
   * @throws ImageUnsuitable when the refcount table is full; ChunkDamaged
   */
  async allocate(): Promise<number> {
    const cluster = (await this.#takeFree()) ?? (await this.#append());
    await this.#setRefcount(cluster, 1);
    return cluster * this.#geometry.clusterBytes;
  }

  /** Gives back a cluster that is used once. @throws ImageUnsuitable, ChunkDamaged */
  async free(position: number): Promise<void> {
    const cluster = position / this.#geometry.clusterBytes;
    const refcount = await this.#refcountOf(cluster);
    if (refcount !== 1) throw new ImageUnsuitable(`its refcount is ${refcount} where it must be 1`);
    await this.#setRefcount(cluster, 0);
    this.#freed.add(cluster);
  }

  async #takeFree(): Promise<number | undefined> {
    for (const cluster of this.#freed) {
      this.#freed.delete(cluster);
      return cluster;
    }
    const found = await this.#free.next();
    return found.done === true ? undefined : found.value;
  }

  /** Clusters before the end that nobody uses, each looked at again when it is asked for. */
  async *#findFree(end: number): AsyncGenerator<number, void> {
    for (let first = 0; first < end; first += this.#blockEntries) {
      const block = await this.#blockOf(first);
      if (block === null) continue;
      const refcounts = await this.#file.read(block, this.#geometry.clusterBytes);
      const count = Math.min(this.#blockEntries, end - first);
      for (let index = 0; index < count; index += 1) {
        if (refcounts.readUInt16BE(index * refcountBytes) !== 0) continue;
        const cluster = first + index;
        if ((await this.#refcountOf(cluster)) !== 0) continue;
        this.#freed.delete(cluster);
        yield cluster;
      }
    }
  }

  async #append(): Promise<number> {
    for (;;) {
      const cluster = this.#end;
      this.#end += 1;
      if ((await this.#refcountOf(cluster)) === 0) return cluster;
    }
  }

  async #refcountOf(cluster: number): Promise<number> {
    const block = await this.#blockOf(cluster);
    if (block === null) return 0;
    const position = block + (cluster % this.#blockEntries) * refcountBytes;
    return (await this.#file.read(position, refcountBytes)).readUInt16BE(0);
  }

  async #setRefcount(cluster: number, refcount: number): Promise<void> {
    const block = (await this.#blockOf(cluster)) ?? (await this.#addBlock(cluster));
    const bytes = Buffer.alloc(refcountBytes);
    bytes.writeUInt16BE(refcount, 0);
    await this.#file.write(block + (cluster % this.#blockEntries) * refcountBytes, bytes);
  }

  #blockEntryPosition(cluster: number): number | null {
    const index = Math.floor(cluster / this.#blockEntries);
    return index < this.#geometry.refcountTableEntries ? this.#geometry.refcountTableBytes + index * 8 : null;
  }

  /** Position of the refcount block of a cluster; `null` while there is none. */
  async #blockOf(cluster: number): Promise<number | null> {
    const position = this.#blockEntryPosition(cluster);
    if (position === null) return null;
    const { offsetBytes } = parseEntry(await this.#file.readWord(position));
    return offsetBytes === 0 ? null : offsetBytes;
  }

  /** A refcount block stands at the end of the file, and counts itself. */
  async #addBlock(cluster: number): Promise<number> {
    const entry = this.#blockEntryPosition(cluster);
    if (entry === null) throw new ImageUnsuitable('its refcount table is full');
    const own = await this.#append();
    const position = own * this.#geometry.clusterBytes;
    await this.#file.write(position, this.zeros);
    await writeTableEntry(this.#file, entry, position, 'none');
    await this.#setRefcount(own, 1);
    return position;
  }
}
