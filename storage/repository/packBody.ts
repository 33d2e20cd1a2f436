import { sharedDirectBuffers } from '../../common/directBuffers.ts';

const pageBytes = 64 * 1024;
const segmentBytesMax = 4 * 1024 * 1024;
/** So many are asked of the system at a time; it gives each when something is written to it. */
const segmentsAtATime = 8;

/**
 * Memory for packs in pieces of one size, which is used again: what is left to the garbage collector would stay for
 * long. All threads see it, so that a pack is hashed where there is time, and it can be written past the page cache.
 */
export class PackMemory {
  readonly segmentBytes: number;
  readonly #spare: Buffer[] = [];
  readonly #untouched: Buffer[] = [];
  #segments = 0;

  /** @param segmentBytes rounded up to 64 KiB */
  constructor(segmentBytes: number) {
    this.segmentBytes = Math.ceil(segmentBytes / pageBytes) * pageBytes;
  }

  /** For one pack after the other. @param packSizeBytes of a pack's body, at which it is closed */
  static forPacks(packSizeBytes: number): PackMemory {
    return new PackMemory(Math.min(Math.max(packSizeBytes / segmentsAtATime, pageBytes), segmentBytesMax));
  }

  /** Pieces that there are, in use or not. */
  get segments(): number {
    return this.#segments;
  }

  take(): Buffer {
    const spare = this.#spare.pop();
    if (spare !== undefined) return spare;
    if (this.#untouched.length === 0)
      this.#untouched.push(...sharedDirectBuffers(segmentsAtATime, this.segmentBytes));
    const segment = this.#untouched.pop();
    if (segment === undefined) throw new Error('there is no memory for packs');
    this.#segments++;
    return segment;
  }

  /** Nobody may look at it any more. */
  giveBack(segment: Buffer): void {
    this.#spare.push(segment);
  }
}

/** The bytes of a pack on their way, from its first one. */
export class PackBody {
  readonly #memory: PackMemory;
  readonly #segments: Buffer[] = [];
  #sizeBytes = 0;

  constructor(memory: PackMemory) {
    this.#memory = memory;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  append(bytes: Uint8Array): void {
    const { segmentBytes } = this.#memory;
    for (let done = 0; done < bytes.length; ) {
      const start = this.#sizeBytes % segmentBytes;
      if (start === 0) this.#segments.push(this.#memory.take());
      const piece = bytes.subarray(done, done + segmentBytes - start);
      this.#segments.at(-1)?.set(piece, start);
      this.#sizeBytes += piece.length;
      done += piece.length;
    }
  }

  /** A copy of some of it. */
  slice(offsetBytes: number, lengthBytes: number): Buffer {
    if (offsetBytes + lengthBytes > this.#sizeBytes) throw new RangeError('it is not that long');
    const copy = Buffer.allocUnsafeSlow(lengthBytes);
    const { segmentBytes } = this.#memory;
    for (let done = 0; done < lengthBytes; ) {
      const at = offsetBytes + done;
      const start = at % segmentBytes;
      const length = Math.min(lengthBytes - done, segmentBytes - start);
      this.#segments[Math.floor(at / segmentBytes)]?.copy(copy, done, start, start + length);
      done += length;
    }
    return copy;
  }

  /** All of it, to be put together in this order; valid until `giveBack`. */
  get parts(): readonly Buffer[] {
    const { segmentBytes } = this.#memory;
    return this.#segments.map((segment, index) =>
      segment.subarray(0, Math.min(segmentBytes, this.#sizeBytes - index * segmentBytes)),
    );
  }

  /** Only when nobody reads it any more: a call of a store that was given up may. */
  giveBack(): void {
    for (const segment of this.#segments.splice(0)) this.#memory.giveBack(segment);
    this.#sizeBytes = 0;
  }
}
