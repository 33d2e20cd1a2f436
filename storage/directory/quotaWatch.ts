import { rm } from 'node:fs/promises';
import type { AddOptions } from '../storage.ts';
import type { Quota } from '../quota.ts';

/**
 * Writes a file that has no final name yet, within a quota. How much it takes shows on the disk only (zeros take
 * nothing): while it grows, and before it counts, the storage is looked at. What would pass the quota is removed.
 * @throws StorageError QUOTA_EXCEEDED; what `write` throws
 */
export async function writeWithin<T>(
  quota: Quota | null,
  path: string,
  options: AddOptions,
  write: (options: AddOptions) => Promise<T>,
): Promise<T> {
  if (quota === null) return write(options);
  const watch = new QuotaWatch(quota, options);
  try {
    const written = await write(watch.options);
    await watch.end();
    await quota.requireKept();
    return written;
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  }
}

/** Looks at a storage each time that enough has been written since the last look. */
class QuotaWatch {
  readonly options: AddOptions;
  readonly #quota: Quota;
  readonly #controller = new AbortController();
  #look: Promise<void> | null = null;
  #nextLookBytes = 0;

  constructor(quota: Quota, options: AddOptions) {
    this.#quota = quota;
    const signals = options.signal === undefined ? [] : [options.signal];
    this.options = {
      ...options,
      signal: AbortSignal.any([this.#controller.signal, ...signals]),
      onProgress: (bytesDone) => {
        if (bytesDone >= this.#nextLookBytes) this.#look ??= this.#lookAfter(bytesDone);
        options.onProgress?.(bytesDone);
      },
    };
  }

  async #lookAfter(bytesDone: number): Promise<void> {
    try {
      const storedBytes = await this.#quota.requireKept();
      this.#nextLookBytes = bytesDone + this.#quota.lookAgainBytes(storedBytes);
      this.#look = null;
    } catch (error) {
      // Ends the write, which rejects with it.
      this.#controller.abort(error);
    }
  }

  /** No look goes on behind a file that is complete. */
  async end(): Promise<void> {
    await this.#look;
  }
}
