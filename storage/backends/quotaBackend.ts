import type { Backend, CallOptions, CreateOptions, ListedObject, ReadOptions } from './backend.ts';
import type { ObjectLock } from './objectLock.ts';

/** Has an object made where there is room for it, and rejects where there is none. */
export type WithRoom = <T>(sizeBytes: number, make: () => Promise<T>) => Promise<T>;

/**
 * A backend that takes large objects within a quota only. Small ones go in all the same: where nothing at all could be
 * written, nothing could be deleted or collected either.
 */
export class QuotaBackend implements Backend {
  readonly location: string;
  readonly objectLock: ObjectLock | null;
  readonly #backend: Backend;
  readonly #prefix: string;
  readonly #withRoom: WithRoom;

  /** @param prefix of the objects that need room */
  constructor(backend: Backend, prefix: string, withRoom: WithRoom) {
    this.location = backend.location;
    this.objectLock = backend.objectLock;
    this.#backend = backend;
    this.#prefix = prefix;
    this.#withRoom = withRoom;
  }

  async create(
    name: string,
    parts: readonly Buffer[],
    options?: CreateOptions,
  ): Promise<'created' | 'exists'> {
    const make = (): Promise<'created' | 'exists'> => this.#backend.create(name, parts, options);
    if (!name.startsWith(this.#prefix)) return make();
    const sizeBytes = parts.reduce((sum, part) => sum + part.length, 0);
    return this.#withRoom(sizeBytes, make);
  }

  createsExclusively(options?: CallOptions): Promise<boolean> {
    return this.#backend.createsExclusively(options);
  }

  read(name: string, options?: ReadOptions): Promise<Buffer | null> {
    return this.#backend.read(name, options);
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
