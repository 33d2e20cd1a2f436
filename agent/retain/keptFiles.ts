import type { FileDigest } from '../../common/copy.ts';
import type { Ownership } from '../../common/files.ts';
import type { BackupWriter } from '../../storage/storage.ts';
import type { Retained } from './retain.ts';

/** Collects what was put into each storage. */
export class KeptFiles {
  /** By storage. */
  readonly files: Record<string, Retained> = {};

  constructor(writers: ReadonlyMap<string, BackupWriter>) {
    for (const storage of writers.keys()) this.files[storage] = {};
  }

  add(storage: string, name: string, stored: FileDigest, owner: Ownership): void {
    this.files[storage] = { ...this.files[storage], [name]: { ...stored, owner } };
  }
}
