/** A stretch of a volume. All positions are in the guest's view of the volume, never in an image file. */
export interface Extent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** Known to read as zeros, so that nobody needs to read it. Data may be zero too. */
  readonly zero: boolean;
}

/** A stretch in which a volume may differ from an earlier state of it. */
export interface Change extends Extent {
  /**
   * Zeros that nothing names as a change: they were zeros in the earlier state, too, unless the image was changed by
   * other means than writing to the volume. Whoever sees without reading anything whether they were compares them.
   */
  readonly unmarked?: boolean | undefined;
}

/** A volume at T1 that can be read: a frozen export of QEMU, or an image that nobody runs. */
export interface VolumeSource {
  readonly virtualSizeBytes: number;
  /**
   * What the volume holds, from 0 to its size, in order and without gaps; neighbours of one kind are joined.
   * Rejects rather than leave something out.
   */
  extents(signal?: AbortSignal): Promise<readonly Extent[]>;
  /**
   * Fills the whole buffer with what stands at a position; several reads may be in flight. Rejects with the
   * source's error; the buffer may then still be written to, until the source is closed.
   */
  readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void>;
}

/** What a volume holds that is not known to be zeros. */
export async function dataBytesOf(source: VolumeSource, signal?: AbortSignal): Promise<number> {
  let sum = 0;
  for (const { zero, lengthBytes } of await source.extents(signal)) if (!zero) sum += lengthBytes;
  return sum;
}
