import { withDeadline } from '../silence.ts';
import type { Backend, CallOptions, CreateOptions, ListedObject, ReadOptions } from './backend.ts';
import type { ObjectLock } from './objectLock.ts';

/**
 * A backend no call of which hangs: one that is silent for long counts as unreachable. For who works on a repository
 * itself; as a storage it has the deadlines of one.
 */
export class DeadlineBackend implements Backend {
  readonly name: string;
  readonly location: string;
  /** Only stores that are asked over a network have one, and their calls end by themselves. */
  readonly objectLock: ObjectLock | null;
  readonly #backend: Backend;
  readonly #silenceMs: number;

  /** @param name of the storage, for errors */
  constructor(name: string, backend: Backend, silenceMs: number) {
    this.name = name;
    this.location = backend.location;
    this.objectLock = backend.objectLock;
    this.#backend = backend;
    this.#silenceMs = silenceMs;
  }

  create(name: string, parts: readonly Buffer[], options?: CreateOptions): Promise<'created' | 'exists'> {
    return this.#within(`creating ${name}`, () => this.#backend.create(name, parts, options));
  }

  createsExclusively(options?: CallOptions): Promise<boolean> {
    return this.#within('a trial', () => this.#backend.createsExclusively(options));
  }

  read(name: string, options?: ReadOptions): Promise<Buffer | null> {
    return this.#within(`reading ${name}`, () => this.#backend.read(name, options));
  }

  size(name: string, options?: CallOptions): Promise<number | null> {
    return this.#within(`looking for ${name}`, () => this.#backend.size(name, options));
  }

  async *list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    const objects = this.#backend.list(prefix, options)[Symbol.asyncIterator]();
    for (;;) {
      const next = await this.#within(`listing ${prefix}`, () => objects.next());
      if (next.done === true) return;
      yield next.value;
    }
  }

  delete(name: string, options?: CallOptions): Promise<void> {
    return this.#within(`deleting ${name}`, () => this.#backend.delete(name, options));
  }

  #within<T>(what: string, call: () => Promise<T>): Promise<T> {
    return withDeadline(this, what, this.#silenceMs, call);
  }
}
