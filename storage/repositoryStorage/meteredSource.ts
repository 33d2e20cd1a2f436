import { setTimeout as sleep } from 'node:timers/promises';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import type { AddOptions } from '../storage.ts';

/** A source whose reads are counted, and held to a bandwidth. */
export class MeteredSource implements VolumeSource {
  readonly #source: VolumeSource;
  readonly #options: AddOptions;
  readonly #startedAt = performance.now();
  #extents: Promise<readonly Extent[]> | null = null;
  /** Asked for, which the bandwidth is held to. */
  #askedBytes = 0;
  #doneBytes = 0;

  constructor(source: VolumeSource, options: AddOptions) {
    this.#source = source;
    this.#options = options;
  }

  get virtualSizeBytes(): number {
    return this.#source.virtualSizeBytes;
  }

  extents(signal?: AbortSignal): Promise<readonly Extent[]> {
    return (this.#extents ??= this.#source.extents(signal));
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    const limit = this.#options.bandwidthBytesPerSecond ?? 0;
    this.#askedBytes += target.length;
    const dueMs = limit <= 0 ? 0 : this.#startedAt + (this.#askedBytes / limit) * 1000 - performance.now();
    if (dueMs >= 1) await sleep(dueMs, undefined, { signal });
    await this.#options.throttle?.take(target.length, signal);
    await this.#source.readInto(target, offsetBytes, signal);
    this.#doneBytes += target.length;
    this.#options.onProgress?.(this.#doneBytes);
  }
}
