import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { limit, mebibyte } from './independentNotation.ts';

/* Of the independent reader: docs/FORMAT.md, "Objects in the store", where the store is a directory. */

/** The longest objects by their folders. */
const bytesMax: Readonly<Record<string, number>> = {
  packs: 256 * mebibyte,
  config: 64 * 1024,
  keys: 64 * 1024,
};

/** Of all others: the longest content, and what its envelope, signature and sealing take. */
const objectBytesMax = 64 * mebibyte + 1024;

export class IndependentStore {
  readonly #root: string;

  constructor(root: string) {
    this.#root = root;
  }

  isThere(name: string): boolean {
    return existsSync(join(this.#root, name));
  }

  /** The bytes of an object, unless it is longer than any honest one. */
  read(name: string): Buffer {
    const path = join(this.#root, name);
    const folder = name.slice(0, name.indexOf('/'));
    limit(statSync(path).size <= (bytesMax[folder] ?? objectBytesMax), `the length of ${name}`);
    return readFileSync(path);
  }

  /** The names of all objects in a folder, in their order; `.` is all of them. */
  names(folder: string): readonly string[] {
    if (!this.isThere(folder)) return [];
    return readdirSync(join(this.#root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(join(this.#root, '/').length))
      .toSorted();
  }
}
