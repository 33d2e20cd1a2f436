import { setTimeout as sleep } from 'node:timers/promises';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import type { AddOptions } from '../storage.ts';

/** A source whose reads are counted, and held to a bandwidth. */
export class MeteredSource implements VolumeSource {
  readonly #source: VolumeSource;
  readonly #options: AddOptions;
  readonly #startedAt = performance.now();
  #extents: Promise<readonly Extent[]> | null = null;
  #readBytes = 0;

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

  /** What it holds that is not known to be zeros. */
  async dataBytes(signal?: AbortSignal): Promise<number> {
    let sum = 0;
    for (const { zero, lengthBytes } of await this.extents(signal)) if (!zero) sum += lengthBytes;
    return sum;
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    const limit = this.#options.bandwidthBytesPerSecond ?? 0;
    this.#readBytes += target.length;
    const dueMs = limit <= 0 ? 0 : this.#startedAt + (this.#readBytes / limit) * 1000 - performance.now();
    if (dueMs >= 1) await sleep(dueMs, undefined, { signal });
    await this.#source.readInto(target, offsetBytes, signal);
    this.#options.onProgress?.(this.#readBytes);
  }
}
