import { Bandwidth } from '../../common/bandwidth.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import type { AddOptions } from '../storage.ts';

/** A source whose reads are counted, and held to a bandwidth. */
export class MeteredSource implements VolumeSource {
  readonly #source: VolumeSource;
  readonly #options: AddOptions;
  /** Time in which nothing was read is not made up for: it may have been a pause. */
  readonly #bandwidth: Bandwidth;
  #extents: Promise<readonly Extent[]> | null = null;
  #doneBytes = 0;

  constructor(source: VolumeSource, options: AddOptions) {
    this.#source = source;
    this.#options = options;
    this.#bandwidth = new Bandwidth(options.limit);
  }

  get virtualSizeBytes(): number {
    return this.#source.virtualSizeBytes;
  }

  extents(signal?: AbortSignal): Promise<readonly Extent[]> {
    return (this.#extents ??= this.#source.extents(signal));
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    await this.#bandwidth.take(target.length, signal);
    await this.#options.throttle?.take(target.length, signal);
    await this.#source.readInto(target, offsetBytes, signal);
    this.#doneBytes += target.length;
    this.#options.onProgress?.(this.#doneBytes);
  }
}
