import type { FileHandle } from 'node:fs/promises';
import { directBuffers } from './directBuffers.ts';
import { openDirect } from './pieces.ts';

/**
 * Reads what was written to a new file once more, past the page cache where the file system can do that, and compares
 * the two byte for byte.
 */
export class ReadBack implements AsyncDisposable {
  readonly #file: FileHandle;
  readonly #buffers: Buffer[];
  #isSame = true;

  private constructor(file: FileHandle, buffers: Buffer[]) {
    this.#file = file;
    this.#buffers = buffers;
  }

  /** @param options.pieces how many may be compared at a time, each of at most `pieceBytes` (multiple of 64 KiB) */
  static async open(
    path: string,
    { pieces, pieceBytes }: { readonly pieces: number; readonly pieceBytes: number },
  ): Promise<ReadBack> {
    return new ReadBack(await openDirect(path), directBuffers(pieces, pieceBytes));
  }

  /** Whether all pieces read back as they were written. */
  get isSame(): boolean {
    return this.#isSame;
  }

  /**
   * Compares a piece that has just been written; what the file does not reach yet must be zeros, which were left out.
   * @throws the system's error
   */
  async compare(written: Buffer, position: number): Promise<void> {
    const buffer = this.#buffers.pop();
    if (buffer === undefined) throw new Error('more pieces are read back at a time than was said');
    try {
      const read = buffer.subarray(0, written.length);
      let filled = 0;
      while (filled < read.length) {
        const { bytesRead } = await this.#file.read(read, filled, read.length - filled, position + filled);
        if (bytesRead === 0) break;
        filled += bytesRead;
      }
      read.fill(0, filled);
      if (!read.equals(written)) this.#isSame = false;
    } finally {
      this.#buffers.push(buffer);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}
