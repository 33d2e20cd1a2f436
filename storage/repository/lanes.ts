import { availableParallelism } from 'node:os';
import type { Run } from '../run.ts';
import { sharedBuffer } from './ownMemory.ts';

const mebibyte = 1024 * 1024;
/** Buffers take so much at the most, or two buffers. */
const bytesMin = 8 * mebibyte;
/** For each processor: one piece that it works on, one that waits for it, one that is being read. */
const bytesPerProcessor = 3 * mebibyte;
const bytesMax = 24 * mebibyte;
const lanesMax = 32;

/** How many buffers of a size are used at once. */
export function laneCount(bufferBytes: number): number {
  const bytes = Math.min(Math.max(bytesMin, bytesPerProcessor * availableParallelism()), bytesMax);
  return Math.min(Math.max(Math.floor(bytes / Math.max(bufferBytes, 1)), 2), lanesMax);
}

/**
 * Work that is done on several pieces at once, each in a buffer of its own that is used again. Memory is bounded by
 * that, whatever the number of pieces. All threads see the buffers.
 */
export class Lanes {
  readonly #bufferBytes: number;
  readonly #spare: Buffer[] = [];
  #buffers = 0;

  constructor(bufferBytes: number) {
    this.#bufferBytes = bufferBytes;
  }

  /** Buffers that were ever made. */
  get buffers(): number {
    return this.#buffers;
  }

  /**
   * Does the work for each piece, beginning in their order; what has to be known of a piece may take time to find out.
   * Rejects with the first failure, and then does not wait for what is under way: its buffers are not used again.
   */
  async run<Piece>(
    run: Run,
    pieces: AsyncGenerator<Piece, void, undefined>,
    work: (piece: Piece, buffer: Buffer) => Promise<void>,
  ): Promise<void> {
    const lane = async (): Promise<void> => {
      // A generator answers those who ask at the same time one after the other.
      for (let next = await pieces.next(); next.done !== true; next = await pieces.next()) {
        run.signal.throwIfAborted();
        const buffer = this.#spare.pop() ?? this.#make();
        await work(next.value, buffer);
        this.#spare.push(buffer);
      }
    };
    const lanes = Array.from({ length: laneCount(this.#bufferBytes) }, async () => {
      try {
        await lane();
      } catch (error) {
        run.fail(error);
      }
    });
    await run.unlessStopped(Promise.all(lanes));
    run.signal.throwIfAborted();
  }

  #make(): Buffer {
    this.#buffers++;
    return sharedBuffer(this.#bufferBytes);
  }
}
