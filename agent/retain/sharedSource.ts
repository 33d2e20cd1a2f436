import type { Extent, VolumeSource } from '../../common/volumeSource.ts';

/** Blocks that are kept for readers that come later. */
const blocksMax = 16;

interface Block {
  readonly reading: Promise<Buffer>;
  /** Readers that have not taken it yet. */
  readonly awaitedBy: Set<SharedReader>;
}

/**
 * One volume for several readers that read the same stretches in the same order: each stretch is read once. A reader
 * that is ahead waits for the others when many blocks are kept for them. One that reads something else than they do
 * gets it all the same, by a read of its own.
 */
export class SharedSource {
  readonly #source: VolumeSource;
  readonly #signal: AbortSignal;
  readonly #readers = new Set<SharedReader>();
  readonly #blocks = new Map<string, Block>();
  #room = Promise.withResolvers<void>();

  /** @param signal ends the reads for all; that of one reader ends only its waiting */
  constructor(source: VolumeSource, signal: AbortSignal) {
    this.#source = source;
    this.#signal = signal;
  }

  get source(): VolumeSource {
    return this.#source;
  }

  /** A reader; all are taken before the first one reads, and each is left when it is done, whatever came of it. */
  join(): SharedReader {
    const reader = new SharedReader(this);
    this.#readers.add(reader);
    return reader;
  }

  leave(reader: SharedReader): void {
    this.#readers.delete(reader);
    for (const key of this.#blocks.keys()) this.#take(reader, key);
    this.#makeRoom();
  }

  async readInto(reader: SharedReader, target: Buffer, offsetBytes: number): Promise<void> {
    const key = `${offsetBytes}+${target.length}`;
    for (;;) {
      const block = this.#take(reader, key);
      if (block !== undefined) {
        (await block.reading).copy(target);
        return;
      }
      const isBehind = [...this.#blocks.values()].some(({ awaitedBy }) => awaitedBy.has(reader));
      // What is kept for it is not what it wants: it must not wait for readers that may wait for it.
      if (isBehind || this.#readers.size < 2) return this.#source.readInto(target, offsetBytes, this.#signal);
      if (this.#blocks.size < blocksMax) break;
      await this.#room.promise;
    }
    const awaitedBy = new Set(this.#readers);
    awaitedBy.delete(reader);
    const reading = this.#ask(offsetBytes, target.length);
    // Who takes it hears of a failure.
    reading.catch(() => undefined);
    this.#blocks.set(key, { reading, awaitedBy });
    (await reading).copy(target);
  }

  #take(reader: SharedReader, key: string): Block | undefined {
    const block = this.#blocks.get(key);
    if (block?.awaitedBy.delete(reader) !== true) return undefined;
    if (block.awaitedBy.size === 0) {
      this.#blocks.delete(key);
      this.#makeRoom();
    }
    return block;
  }

  #makeRoom(): void {
    this.#room.resolve();
    this.#room = Promise.withResolvers<void>();
  }

  async #ask(offsetBytes: number, lengthBytes: number): Promise<Buffer> {
    const buffer = Buffer.allocUnsafe(lengthBytes);
    await this.#source.readInto(buffer, offsetBytes, this.#signal);
    return buffer;
  }
}

/** The volume as one of its readers sees it. */
export class SharedReader implements VolumeSource, Disposable {
  readonly #shared: SharedSource;

  constructor(shared: SharedSource) {
    this.#shared = shared;
  }

  get virtualSizeBytes(): number {
    return this.#shared.source.virtualSizeBytes;
  }

  extents(signal?: AbortSignal): Promise<readonly Extent[]> {
    return this.#shared.source.extents(signal);
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    await this.#shared.readInto(this, target, offsetBytes);
  }

  [Symbol.dispose](): void {
    this.#shared.leave(this);
  }
}
