import type { CallOptions } from './backend.ts';

/**
 * What a store does that keeps objects from being deleted before a time, whoever asks for it (object lock in compliance
 * mode, with versions). Its parts are behind `Backend.objectLock`; none of them does what it says before `isEnforced`
 * was seen to be true: servers exist that take what they do not know, and ignore it.
 */
export interface ObjectLock {
  /**
   * Whether the store refuses to delete what is under retention, by trying to. Leaves an object under `probe/` that
   * nobody can delete for some minutes; the next trial takes it away.
   *
   * Rejects with STORAGE_DENIED where the rights do not reach for finding out.
   */
  isEnforced(options?: CallOptions): Promise<boolean>;
  /** What is known of an object that a read would find; `null` when there is none. */
  status(name: string, options?: CallOptions): Promise<LockStatus | null>;
  /**
   * Puts an object that is there under compliance retention until a time; one that lasts longer stays.
   *
   * Rejects with FILE_MISSING.
   */
  retain(name: string, until: Date, options?: CallOptions): Promise<void>;
  /**
   * Deletes an object with all its versions: a deletion without it only hides what is stored. One that is not there
   * is fine.
   *
   * Rejects with OBJECT_LOCKED while one of them is under retention; then nothing was deleted.
   */
  remove(name: string, options?: CallOptions): Promise<void>;
  /** Hides an object from readers, also one under retention: a deletion marker is put on top of its versions. */
  hide(name: string, options?: CallOptions): Promise<void>;
  /** Every object below a prefix that has a version under retention which a read does not find. */
  displaced(prefix: string, options?: CallOptions): AsyncIterable<DisplacedObject>;
  /** Has a read find again what was displaced. Doing it twice does no more than once. */
  bringBack(object: DisplacedObject, options?: CallOptions): Promise<void>;
}

export interface LockStatus {
  readonly sizeBytes: number;
  /** `null`: anybody may delete it. May be in the past. */
  readonly retainedUntil: Date | null;
}

/**
 * An object that was stored under retention and that a read does not find: somebody deleted it, which only hides it, or
 * stored something else under its name, which takes a version more.
 */
export interface DisplacedObject {
  readonly name: string;
  readonly how: 'deleted' | 'overwritten';
  readonly retainedUntil: Date;
  /** In the words of the store: the first version under retention. */
  readonly versionId: string;
}
