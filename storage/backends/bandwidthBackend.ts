import type { Bandwidth } from '../../common/bandwidth.ts';
import type { Backend, CallOptions, CreateOptions, ListedObject, ReadOptions } from './backend.ts';
import type { ObjectLock } from './objectLock.ts';

/**
 * A backend whose contents, in both directions together, are held to a bandwidth. An object goes in one piece, so it
 * is kept between objects: one of 32 MiB is sent as fast as it goes, and then nothing for as long as it is worth.
 */
export class BandwidthBackend implements Backend {
  readonly location: string;
  readonly objectLock: ObjectLock | null;
  readonly #backend: Backend;
  readonly #bandwidth: Bandwidth;

  constructor(backend: Backend, bandwidth: Bandwidth) {
    this.location = backend.location;
    this.objectLock = backend.objectLock;
    this.#backend = backend;
    this.#bandwidth = bandwidth;
  }

  async create(
    name: string,
    parts: readonly Buffer[],
    options?: CreateOptions,
  ): Promise<'created' | 'exists'> {
    const sizeBytes = parts.reduce((sum, { length }) => sum + length, 0);
    await this.#bandwidth.take(sizeBytes, options?.signal);
    return this.#backend.create(name, parts, options);
  }

  createsExclusively(options?: CallOptions): Promise<boolean> {
    return this.#backend.createsExclusively(options);
  }

  async read(name: string, options?: ReadOptions): Promise<Buffer | null> {
    const content = await this.#backend.read(name, options);
    // Only now its length is known.
    if (content !== null) await this.#bandwidth.take(content.length, options?.signal);
    return content;
  }

  size(name: string, options?: CallOptions): Promise<number | null> {
    return this.#backend.size(name, options);
  }

  list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    return this.#backend.list(prefix, options);
  }

  delete(name: string, options?: CallOptions): Promise<void> {
    return this.#backend.delete(name, options);
  }
}
