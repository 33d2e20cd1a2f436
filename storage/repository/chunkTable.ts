import { type ChunkType, chunkIdBytes, chunkTypeNumbers } from './chunkId.ts';
import { nameOf, type PlacedEntry } from './packFormat.ts';

/** A chunk and the pack that holds it, by the number that the pack has in this process. */
export interface ChunkPlace {
  /** Its number among all places that this process knows, from 0. */
  readonly number: number;
  readonly pack: number;
  readonly entry: PlacedEntry;
}

/*
 * A repository has millions of chunks, so they are no JavaScript objects: records of 51 bytes in large blocks, found
 * through a table of record numbers (open addressing). With the table that is 56 to 62 bytes for each chunk.
 */
const recordBytes = 51;
const recordsPerBlock = 16_384;
const emptyPlace = 0;

/** Which chunks there are, and where. The same chunk may be in several packs. */
export class ChunkTable {
  readonly #blocks: Buffer[] = [];
  /** Record number + 1, or 0. Its length is a power of two. */
  #table = new Uint32Array(1024);
  #count = 0;

  /** Records, duplicates counted. */
  get count(): number {
    return this.#count;
  }

  /** What it takes of memory. */
  get memoryBytes(): number {
    return this.#table.byteLength + this.#blocks.length * recordsPerBlock * recordBytes;
  }

  add(pack: number, entry: PlacedEntry): void {
    if ((this.#count + 1) * 4 > this.#table.length * 3) this.#grow();
    if (this.#count === this.#blocks.length * recordsPerBlock)
      this.#blocks.push(Buffer.alloc(recordsPerBlock * recordBytes));
    writeRecord(this.#record(this.#count), pack, entry);
    this.#insert(this.#count);
    this.#count++;
  }

  /** Every place at which a chunk is, in the order in which they were added. */
  *find(id: Buffer): Generator<ChunkPlace> {
    const mask = this.#table.length - 1;
    for (let place = id.readUInt32LE() & mask; ; place = (place + 1) & mask) {
      const record = this.#table[place] ?? emptyPlace;
      if (record === emptyPlace) return;
      const bytes = this.#record(record - 1);
      if (id.compare(bytes, 0, chunkIdBytes) === 0) yield readRecord(bytes, record - 1);
    }
  }

  /** Every record of one pack. */
  *ofPack(pack: number): Generator<ChunkPlace> {
    for (let number = 0; number < this.#count; number++) {
      const bytes = this.#record(number);
      if (bytes.readUInt32BE(32) === pack) yield readRecord(bytes, number);
    }
  }

  /** Every record, by its number. */
  *all(): Generator<ChunkPlace> {
    for (let number = 0; number < this.#count; number++) yield readRecord(this.#record(number), number);
  }

  #record(number: number): Buffer {
    const block = this.#blocks[Math.floor(number / recordsPerBlock)];
    const offset = (number % recordsPerBlock) * recordBytes;
    if (block === undefined) throw new Error(`there is no record ${number}`);
    return block.subarray(offset, offset + recordBytes);
  }

  #insert(number: number): void {
    const mask = this.#table.length - 1;
    // Ids are hashes: any of their bytes are as good as random.
    let place = this.#record(number).readUInt32LE() & mask;
    while (this.#table[place] !== emptyPlace) place = (place + 1) & mask;
    this.#table[place] = number + 1;
  }

  #grow(): void {
    this.#table = new Uint32Array(this.#table.length * 2);
    for (let number = 0; number < this.#count; number++) this.#insert(number);
  }
}

function writeRecord(bytes: Buffer, pack: number, entry: PlacedEntry): void {
  bytes.set(entry.id, 0);
  bytes.writeUInt32BE(pack, 32);
  bytes.writeUInt32BE(entry.offsetBytes, 36);
  bytes.writeUInt16BE(entry.slot, 40);
  // Lengths are from 1 to 2^24.
  bytes.writeUIntBE(entry.rawBytes - 1, 42, 3);
  bytes.writeUIntBE(entry.storedBytes - 1, 45, 3);
  bytes[48] = entry.level;
  bytes[49] = Math.log2(entry.domain.chunkSizeBytes);
  bytes[50] = chunkTypeNumbers[entry.domain.type] * 2 + (entry.codec === 'zstd' ? 1 : 0);
}

function readRecord(bytes: Buffer, number: number): ChunkPlace {
  const kind = bytes.readUInt8(50);
  const type: ChunkType | null = nameOf(chunkTypeNumbers, kind >> 1);
  if (type === null) throw new Error('a record of the chunk table is damaged: check the memory of this host');
  return {
    number,
    pack: bytes.readUInt32BE(32),
    entry: {
      id: Buffer.from(bytes.subarray(0, chunkIdBytes)),
      domain: { type, chunkSizeBytes: 2 ** bytes.readUInt8(49) },
      codec: kind % 2 === 1 ? 'zstd' : 'none',
      level: bytes.readUInt8(48),
      rawBytes: bytes.readUIntBE(42, 3) + 1,
      storedBytes: bytes.readUIntBE(45, 3) + 1,
      slot: bytes.readUInt16BE(40),
      offsetBytes: bytes.readUInt32BE(36),
    },
  };
}
