import { StorageError } from '../errors.ts';
import type { ObjectLock } from './objectLock.ts';

/**
 * The port to a place that keeps objects: a flat set of names with contents (docs/FORMAT.md, "Objects in the store").
 * Whatever implements it passes `test/conformance/backend.ts`.
 *
 * Rejections are `StorageError`, or the reason of an AbortSignal. A rejected call may have happened all the same: the
 * answer can be what got lost. Every call may therefore be repeated.
 */
export interface Backend {
  /** Where it is, for people. */
  readonly location: string;
  /** How objects are kept from being deleted; `null` for a kind of store that knows no such thing. */
  readonly objectLock: ObjectLock | null;

  /**
   * Creates an object if its name is free. The object is whole and durable, name included, when this resolves,
   * whichever the answer; there is never a part of it under its name (invariants 3 and 4).
   *
   * @param parts the content, to be put together in this order
   */
  create(name: string, parts: readonly Buffer[], options?: CreateOptions): Promise<'created' | 'exists'>;
  /**
   * Whether of all who create one name at once exactly one is told `created`. Found out by trying where a kind of store
   * does not promise it. Where it is not so, what was there before a call began stays all the same.
   */
  createsExclusively(options?: CallOptions): Promise<boolean>;
  /**
   * The content, or `null` when there is no such object. Of a range, what there is of it. The buffer is the caller's, who
   * may give its memory away.
   */
  read(name: string, options?: ReadOptions): Promise<Buffer | null>;
  /** Length in bytes, or `null` when there is no such object. */
  size(name: string, options?: CallOptions): Promise<number | null>;
  /**
   * Every object whose name begins with a prefix that ends in a slash, in any order. Whether objects that were made or
   * deleted just now are among them differs: nobody may conclude from a listing that an object is not there.
   */
  list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject>;
  /** Deletes an object, durably. One that is not there is fine. */
  delete(name: string, options?: CallOptions): Promise<void>;
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

export interface CreateOptions extends CallOptions {
  /** The object is under compliance retention until then, from its first moment on; only where there is a lock. */
  readonly retainUntil?: Date | undefined;
}

export interface ReadOptions extends CallOptions {
  readonly range?: ByteRange | undefined;
}

export interface ByteRange {
  readonly offsetBytes: number;
  /** At least 1. */
  readonly lengthBytes: number;
}

export interface ListedObject {
  readonly name: string;
  readonly sizeBytes: number;
}

/** A whole listing. */
export async function listAll(
  backend: Pick<Backend, 'list'>,
  prefix: string,
  options?: CallOptions,
): Promise<readonly ListedObject[]> {
  const objects: ListedObject[] = [];
  for await (const object of backend.list(prefix, options)) objects.push(object);
  return objects;
}

/** Throws NAME_INVALID for a name that no object may have. */
export function assertObjectName(name: string): void {
  if (isObjectName(name)) return;
  throw new StorageError('NAME_INVALID', `no object can be called ${JSON.stringify(name)}`);
}

/** Components of small letters, digits, dots and dashes; none begins with a dot. */
export function isObjectName(name: string): boolean {
  return name.length <= 255 && /^[a-z0-9][a-z0-9.-]*(\/[a-z0-9][a-z0-9.-]*)*$/.test(name);
}
