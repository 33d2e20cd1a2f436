import type { FileHandle } from 'node:fs/promises';
import { chunkBytes, chunkSha256Beside, formatSums } from '../../common/chunkSums.ts';

/** Chunks kept in memory, 8 MiB: some of data, the tables that lead to them, and what is appended. */
const chunksInMemory = 8;
/** Chunks that are compared, hashed and written while others are used; each may need a second buffer. */
const storesBehind = 3;
/** What was written is brought to the disk in pieces of this size, so that no fsync keeps silent for long. */
const flushBytes = 256 * 1024 * 1024;
const word64Bytes = 8;

/** The file is not what its list of digests says. */
export class ChunkDamaged extends Error {
  constructor(index: number) {
    super(`its bytes from ${index * chunkBytes} on are not what was stored`);
  }
}

interface Chunk {
  readonly index: number;
  readonly bytes: Buffer;
  /** Stretches within the chunk that differ from the file, in rising order. */
  readonly changed: Stretch[];
  /** Everything in `bytes` counts; otherwise only what is changed, and the rest is in the file still. */
  isComplete: boolean;
}

interface Stretch {
  start: number;
  end: number;
}

/**
 * A copy of a stored file that is being changed. Chunks that nobody touches keep their digests; what is left of those
 * that are touched is compared with theirs before it is used, so that damage never gets a digest that fits it. Grows
 * at its end. One caller at a time; digests and the disk are worked on beside it.
 */
export class EditedFile {
  readonly #file: FileHandle;
  readonly #sums: (string | undefined)[];
  /** Length of each chunk when its digest was made, where it is not a whole chunk. */
  readonly #lengths = new Map<number, number>();
  /** In the order of their last use. */
  readonly #chunks = new Map<number, Chunk>();
  /** Not in use any more, on their way to the disk. None of them rejects. */
  readonly #storing = new Map<number, Promise<void>>();
  /** Of chunks that are done with: getting memory costs more than using it again. */
  readonly #spare: Buffer[] = [];
  #storeFailure: { readonly error: unknown } | null = null;
  #sizeBytes: number;
  #unflushedBytes = 0;

  /** @param sums digests of the file's chunks, one for each */
  constructor(file: FileHandle, sizeBytes: number, sums: readonly string[]) {
    if (sums.length !== Math.ceil(sizeBytes / chunkBytes))
      throw new Error(`${sums.length} digests for ${sizeBytes} bytes`);
    this.#file = file;
    this.#sums = [...sums];
    this.#sizeBytes = sizeBytes;
    if (sums.length > 0) this.#lengths.set(sums.length - 1, this.#lengthOf(sums.length - 1));
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** @throws ChunkDamaged; Error beyond the end of the file */
  async read(position: number, lengthBytes: number): Promise<Buffer> {
    if (position + lengthBytes > this.#sizeBytes)
      throw new Error(`${lengthBytes} bytes at ${position} are beyond the end, ${this.#sizeBytes}`);
    const result = Buffer.allocUnsafe(lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const at = position + done;
      const chunk = await this.#completeChunk(Math.floor(at / chunkBytes));
      done += chunk.bytes.copy(result, done, at % chunkBytes, (at % chunkBytes) + lengthBytes - done);
    }
    return result;
  }

  /** The 64 bits at a position, big-endian, in two halves. @throws ChunkDamaged */
  async readWord(position: number): Promise<{ readonly high: number; readonly low: number }> {
    const word = await this.read(position, word64Bytes);
    return { high: word.readUInt32BE(0), low: word.readUInt32BE(4) };
  }

  /** Writes inside the file or at its end. @throws ChunkDamaged */
  async write(position: number, data: Buffer): Promise<void> {
    this.#sizeBytes = Math.max(this.#sizeBytes, position + data.length);
    for (let done = 0; done < data.length; ) {
      const at = position + done;
      const start = at % chunkBytes;
      const chunk = await this.#chunk(Math.floor(at / chunkBytes));
      const end = start + data.copy(chunk.bytes, start, done);
      noteChange(chunk, start, end);
      done += end - start;
    }
  }

  /**
   * Brings everything to the disk.
   * @returns the list of the digests of all chunks
   * @throws ChunkDamaged
   */
  async finish(): Promise<string> {
    const rest = [...this.#chunks.values()];
    this.#chunks.clear();
    for (const chunk of rest) await this.#storeBehind(chunk);
    await this.close();
    this.#requireStored();
    const count = Math.ceil(this.#sizeBytes / chunkBytes);
    for (let index = 0; index < count; index += 1) {
      const length = this.#lengths.get(index) ?? chunkBytes;
      // Grown since, or jumped over.
      if (this.#sums[index] === undefined || length !== this.#lengthOf(index))
        await this.#store(await this.#completeChunk(index));
    }
    await this.close();
    this.#requireStored();
    await this.#file.truncate(this.#sizeBytes);
    await this.#file.sync();
    return formatSums(this.#sums.map((sum) => sum ?? ''));
  }

  /** Waits until nothing is read or written any more, so that the file can be closed. */
  async close(): Promise<void> {
    await Promise.all(this.#storing.values());
  }

  #lengthOf(index: number): number {
    return Math.min(chunkBytes, this.#sizeBytes - index * chunkBytes);
  }

  /** A chunk that counts as used now; the one that was not used for longest makes room for it. */
  async #chunk(index: number): Promise<Chunk> {
    const known = this.#chunks.get(index);
    const chunk = known ?? this.#emptyChunk(index);
    this.#chunks.delete(index);
    this.#chunks.set(index, chunk);
    for (const unused of this.#chunks.values()) {
      if (this.#chunks.size <= chunksInMemory) break;
      this.#chunks.delete(unused.index);
      await this.#storeBehind(unused);
    }
    return chunk;
  }

  async #completeChunk(index: number): Promise<Chunk> {
    const chunk = await this.#chunk(index);
    await this.#complete(chunk, this.#storing.get(index));
    return chunk;
  }

  #emptyChunk(index: number): Chunk {
    return { index, bytes: this.#buffer(), changed: [], isComplete: false };
  }

  #buffer(): Buffer {
    return this.#spare.pop() ?? Buffer.allocUnsafe(chunkBytes);
  }

  /**
   * Takes from the file what is not changed, if that is anything: a chunk that is written anew is not read.
   * @param earlier what is still being written of the same chunk
   */
  async #complete(chunk: Chunk, earlier: Promise<void> | undefined): Promise<void> {
    if (chunk.isComplete) return;
    await earlier;
    const { index, bytes, changed } = chunk;
    const gaps = gapsBetween(changed);
    const expected = this.#sums[index];
    const lengthBytes = expected === undefined ? 0 : (this.#lengths.get(index) ?? chunkBytes);
    const stored = this.#buffer();
    try {
      if (expected !== undefined && gaps.some(({ start }) => start < lengthBytes))
        await this.#load(index, stored.subarray(0, lengthBytes), expected);
      stored.fill(0, lengthBytes);
      for (const { start, end } of gaps) stored.copy(bytes, start, start, end);
      chunk.isComplete = true;
    } finally {
      this.#spare.push(stored);
    }
  }

  async #load(index: number, stored: Buffer, expected: string): Promise<void> {
    const filledBytes = await readFully(this.#file, stored, index * chunkBytes);
    stored.fill(0, filledBytes);
    if ((await chunkSha256Beside(stored)) !== expected) throw new ChunkDamaged(index);
  }

  /** Has a chunk stored while others are used; waits only when too many are on their way. */
  async #storeBehind(chunk: Chunk): Promise<void> {
    const earlier = this.#storing.get(chunk.index);
    const storing = this.#complete(chunk, earlier)
      .then(() => this.#store(chunk))
      .catch((error: unknown) => {
        this.#storeFailure ??= { error };
      })
      .finally(() => {
        if (this.#storing.get(chunk.index) === storing) this.#storing.delete(chunk.index);
        this.#spare.push(chunk.bytes);
      });
    this.#storing.set(chunk.index, storing);
    if (this.#storing.size >= storesBehind) await Promise.race(this.#storing.values());
    this.#requireStored();
  }

  #requireStored(): void {
    if (this.#storeFailure !== null) throw this.#storeFailure.error;
  }

  /** Writes what is changed, and makes the digest anew. */
  async #store({ index, bytes, changed }: Chunk): Promise<void> {
    const length = this.#lengthOf(index);
    const isNew = this.#sums[index] === undefined || (this.#lengths.get(index) ?? chunkBytes) !== length;
    if (changed.length === 0 && !isNew) return;
    const digest = chunkSha256Beside(bytes.subarray(0, length));
    let writtenBytes = 0;
    for (const { start, end } of changed) {
      await writeFully(this.#file, bytes.subarray(start, end), index * chunkBytes + start);
      writtenBytes += end - start;
    }
    changed.length = 0;
    this.#sums[index] = await digest;
    if (length === chunkBytes) this.#lengths.delete(index);
    else this.#lengths.set(index, length);
    this.#unflushedBytes += writtenBytes;
    if (this.#unflushedBytes < flushBytes) return;
    this.#unflushedBytes = 0;
    await this.#file.datasync();
  }
}

/** Joins a stretch with those that it touches. */
function noteChange(chunk: Chunk, start: number, end: number): void {
  const { changed } = chunk;
  const last = changed.at(-1);
  if (last !== undefined && start >= last.start && start <= last.end) {
    last.end = Math.max(last.end, end);
    return;
  }
  const joined = { start, end };
  const apart = changed.filter((stretch) => {
    if (stretch.end < start || stretch.start > end) return true;
    joined.start = Math.min(joined.start, stretch.start);
    joined.end = Math.max(joined.end, stretch.end);
    return false;
  });
  changed.length = 0;
  changed.push(...apart, joined);
  changed.sort((one, other) => one.start - other.start);
}

/** What of a chunk is not in any of these stretches. */
function gapsBetween(stretches: readonly Stretch[]): readonly Stretch[] {
  const gaps: Stretch[] = [];
  let at = 0;
  for (const { start, end } of stretches) {
    if (start > at) gaps.push({ start: at, end: start });
    at = end;
  }
  if (at < chunkBytes) gaps.push({ start: at, end: chunkBytes });
  return gaps;
}

/** How much of the buffer the file has. One that ends before its digests do is damaged, too: what is missing is zero. */
async function readFully(file: FileHandle, buffer: Buffer, position: number): Promise<number> {
  let filled = 0;
  while (filled < buffer.length) {
    const { bytesRead } = await file.read(buffer, filled, buffer.length - filled, position + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return filled;
}

async function writeFully(file: FileHandle, data: Buffer, position: number): Promise<void> {
  for (let written = 0; written < data.length; ) {
    const { bytesWritten } = await file.write(data, written, data.length - written, position + written);
    written += bytesWritten;
  }
}
