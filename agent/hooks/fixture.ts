import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isErrno } from '../../common/errors.ts';

/** A place for hooks of tests, below a directory that is sticky where others may write to it. */
export class HookPlace implements AsyncDisposable {
  readonly directory: string;
  #count = 0;

  private constructor(directory: string) {
    this.directory = directory;
  }

  static async make(): Promise<HookPlace> {
    return new HookPlace(await mkdtemp(join(tmpdir(), 'sp-hooks-')));
  }

  /** A program that a shell reads; returns its path. */
  async program(script: string, mode = 0o755): Promise<string> {
    const path = join(this.directory, `hook-${(this.#count += 1)}`);
    await writeFile(path, `#!/bin/sh\n${script}\n`, { mode });
    return path;
  }

  /** Where programs may write to. */
  file(name: string): string {
    return join(this.directory, name);
  }

  /** The lines that programs have written there. */
  async lines(name: string): Promise<readonly string[]> {
    try {
      return (await readFile(this.file(name), 'utf8')).split('\n').filter((line) => line !== '');
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return [];
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.directory, { recursive: true, force: true });
  }
}
