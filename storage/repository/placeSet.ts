import type { ChunkPlace } from './chunkTable.ts';

/** Places of an index, a bit for each: a repository has too many chunks to keep their ids. The index may grow meanwhile. */
export class PlaceSet {
  #bits: Uint8Array;

  /** @param count places that the index has by now */
  constructor(count: number) {
    this.#bits = new Uint8Array(Math.ceil(count / 8));
  }

  get memoryBytes(): number {
    return this.#bits.byteLength;
  }

  has({ number }: Pick<ChunkPlace, 'number'>): boolean {
    return ((this.#bits[number >> 3] ?? 0) & (1 << (number & 7))) !== 0;
  }

  /** Returns whether it was not there. */
  add(place: Pick<ChunkPlace, 'number'>): boolean {
    if (this.has(place)) return false;
    const byte = place.number >> 3;
    if (byte >= this.#bits.length) this.#grow(byte + 1);
    this.#bits[byte] = (this.#bits[byte] ?? 0) | (1 << (place.number & 7));
    return true;
  }

  #grow(bytes: number): void {
    const larger = new Uint8Array(Math.ceil((bytes * 5) / 4));
    larger.set(this.#bits);
    this.#bits = larger;
  }
}
