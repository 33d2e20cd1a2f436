import type { Extent } from '../common/volumeSource.ts';

/**
 * Where a volume is known to be zero. Stretches of both kinds take turns, so that eight bytes each are enough: a
 * volume can have millions of them.
 */
export class ZeroMap {
  /** Where each stretch starts, and where the last one ends. */
  readonly #bounds: Float64Array;
  readonly #firstIsZero: boolean;

  private constructor(bounds: Float64Array, firstIsZero: boolean) {
    this.#bounds = bounds;
    this.#firstIsZero = firstIsZero;
  }

  /**
   * @param extents from 0 to the size, in order and without gaps
   * @throws Error when they are not: what is zero by mistake is lost
   */
  static of(extents: readonly Extent[], sizeBytes: number): ZeroMap {
    const bounds: number[] = [];
    let position = 0;
    let lastZero: boolean | undefined;
    for (const { offsetBytes, lengthBytes, zero } of extents) {
      if (offsetBytes !== position || lengthBytes <= 0)
        throw new Error(`the map of the volume has a gap at ${position}`);
      if (zero !== lastZero) bounds.push(offsetBytes);
      lastZero = zero;
      position += lengthBytes;
    }
    if (position !== sizeBytes) throw new Error(`the map of the volume has a gap at ${position}`);
    bounds.push(sizeBytes);
    return new ZeroMap(Float64Array.from(bounds), extents[0]?.zero === true);
  }

  /** The number of the stretch with a position that is within the volume. */
  stretchAt(offsetBytes: number): number {
    let low = 0;
    let high = this.#bounds.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if ((this.#bounds[middle] ?? 0) <= offsetBytes) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  endOf(stretch: number): number {
    return this.#bounds[stretch + 1] ?? 0;
  }

  isZero(stretch: number): boolean {
    return (stretch % 2 === 0) === this.#firstIsZero;
  }

  /** Whether a range of at least one byte is zero from its start to its end. */
  isZeroRange(offsetBytes: number, lengthBytes: number): boolean {
    const stretch = this.stretchAt(offsetBytes);
    return this.isZero(stretch) && this.endOf(stretch) >= offsetBytes + lengthBytes;
  }

  /** The first position from here on that is not known to be zero; the size where there is none. */
  nextData(offsetBytes: number): number {
    const stretch = this.stretchAt(offsetBytes);
    return this.isZero(stretch) ? this.endOf(stretch) : offsetBytes;
  }
}
