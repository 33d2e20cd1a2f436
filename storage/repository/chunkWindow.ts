import { unlessAborted } from '../../common/unlessAborted.ts';
import { sharedBuffer } from './ownMemory.ts';

/** A chunk of a window: on its way, or there. */
export interface WindowChunk {
  readonly number: number;
  /** Long enough for any chunk; all threads see it. */
  readonly buffer: Buffer;
  /** Resolves when the chunk stands in the buffer. A chunk that could not be read is not in the window any more. */
  readonly ready: Promise<void>;
  /** Whoever has it be read, and may cancel that. */
  readonly reader: object;
}

interface Slot extends WindowChunk {
  readonly settle: { resolve(): void; reject(error: unknown): void };
  users: number;
  isSettled: boolean;
}

/**
 * Chunks of a stream in memory: those that are about to be read, and those that were read last. Its buffers are used
 * again, so a chunk must be held while it is looked at.
 */
export class ChunkWindow {
  readonly slotsMax: number;
  readonly #slotBytes: number;
  /** By number, the least recently used first. */
  readonly #slots = new Map<number, Slot>();
  #buffers = 0;
  #changes = 0;
  #change = Promise.withResolvers<void>();

  constructor(slotBytes: number, slotsMax: number) {
    this.#slotBytes = slotBytes;
    this.slotsMax = slotsMax;
  }

  /** Buffers that were ever made. */
  get buffers(): number {
    return this.#buffers;
  }

  has(number: number): boolean {
    return this.#slots.has(number);
  }

  /** Holds a chunk, if it is there or on its way, until `release`. */
  hold(number: number): WindowChunk | null {
    const slot = this.#slots.get(number);
    if (slot === undefined) return null;
    this.#slots.delete(number);
    this.#slots.set(number, slot);
    slot.users++;
    return slot;
  }

  release(chunk: WindowChunk): void {
    const slot = this.#slots.get(chunk.number);
    if (slot !== chunk) return;
    slot.users--;
    this.#tell();
  }

  /** Makes room for a chunk that is not there; `null` while all room is in use. It must be settled. */
  add(number: number, reader: object): WindowChunk | null {
    if (this.#slots.has(number)) throw new Error(`chunk ${number} is there already`);
    const buffer = this.#room();
    if (buffer === null) return null;
    const { promise: ready, resolve, reject } = Promise.withResolvers<void>();
    // Who waits for it is told; a chunk that was read ahead may have nobody who does.
    ready.catch(() => undefined);
    this.#slots.set(number, {
      number,
      buffer,
      ready,
      reader,
      settle: { resolve, reject },
      users: 0,
      isSettled: false,
    });
    return this.#slots.get(number) ?? null;
  }

  /** Says what came of a chunk. */
  async settle(number: number, reading: Promise<void>): Promise<void> {
    const slot = this.#slots.get(number);
    if (slot === undefined) throw new Error(`nobody waits for chunk ${number}`);
    try {
      await reading;
      slot.isSettled = true;
      slot.settle.resolve();
    } catch (error) {
      // Its buffer is not used again: who knows what still writes to it.
      this.#slots.delete(number);
      this.#buffers--;
      slot.settle.reject(error);
    }
    this.#tell();
  }

  /** How often there may have come to be room. */
  get changes(): number {
    return this.#changes;
  }

  /** Resolves when there may be room. */
  async change(signal: AbortSignal | undefined): Promise<void> {
    await unlessAborted(this.#change.promise, signal);
  }

  #room(): Buffer | null {
    if (this.#buffers < this.slotsMax) {
      this.#buffers++;
      return sharedBuffer(this.#slotBytes);
    }
    for (const slot of this.#slots.values()) {
      if (slot.users > 0 || !slot.isSettled) continue;
      this.#slots.delete(slot.number);
      return slot.buffer;
    }
    return null;
  }

  #tell(): void {
    this.#changes++;
    this.#change.resolve();
    this.#change = Promise.withResolvers<void>();
  }
}
