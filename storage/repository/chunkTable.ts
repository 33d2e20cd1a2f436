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
 * through a table of record numbers (open addressing). The table grows by a third when three quarters of it are taken,
 * so it has from 5.4 to 7.2 bytes for each chunk; with all that is 56 to 59 bytes.
 */
const recordBytes = 51;
const recordsPerBlock = 4096;
const fullness = 3 / 4;
const growth = 4 / 3;
const placesMin = 1024;
const emptyPlace = 0;

/** Which chunks there are, and where. The same chunk may be in several packs. */
export class ChunkTable {
  readonly #blocks: Buffer[] = [];
  /** Record number + 1, or 0. */
  #table = new Uint32Array(placesMin);
  #count = 0;

  /** Records, duplicates counted. */
  get count(): number {
    return this.#count;
  }

  /** What it takes of memory. */
  get memoryBytes(): number {
    return this.#table.byteLength + this.#blocks.length * recordsPerBlock * recordBytes;
  }

  /** Makes room for so many more records at once, so that the table grows no more on the way. */
  reserve(records: number): void {
    const places = (this.#count + records) / fullness;
    // A little more again and again must not cost a new table each time.
    if (places > this.#table.length) this.#resize(Math.max(places, this.#table.length * growth));
  }

  add(pack: number, entry: PlacedEntry): void {
    if (this.#count + 1 > this.#table.length * fullness) this.#resize(this.#table.length * growth);
    if (this.#count === this.#blocks.length * recordsPerBlock)
      this.#blocks.push(Buffer.alloc(recordsPerBlock * recordBytes));
    writeRecord(this.#record(this.#count), pack, entry);
    this.#insert(this.#count);
    this.#count++;
  }

  /** Every place at which a chunk is, in the order in which they were added. */
  *find(id: Buffer): Generator<ChunkPlace> {
    for (let place = this.#firstPlace(id); ; place = this.#nextPlace(place)) {
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
    let place = this.#firstPlace(this.#record(number));
    while (this.#table[place] !== emptyPlace) place = this.#nextPlace(place);
    this.#table[place] = number + 1;
  }

  /** Where to look first. Ids are hashes: any of their bytes are as good as random. */
  #firstPlace(id: Buffer): number {
    return Math.floor((id.readUInt32LE() / 2 ** 32) * this.#table.length);
  }

  #nextPlace(place: number): number {
    return place + 1 === this.#table.length ? 0 : place + 1;
  }

  #resize(places: number): void {
    // First: the old one is not needed, and a large table must not be there twice.
    this.#table = new Uint32Array(0);
    this.#table = new Uint32Array(Math.ceil(places));
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
