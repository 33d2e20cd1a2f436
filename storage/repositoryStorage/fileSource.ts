import { type FileHandle, open } from 'node:fs/promises';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';

/** A file of the host as a stream: a memory state, a definition, an image that is stored as it stands. */
export class FileSource implements VolumeSource, AsyncDisposable {
  readonly virtualSizeBytes: number;
  readonly #file: FileHandle;

  private constructor(file: FileHandle, sizeBytes: number) {
    this.#file = file;
    this.virtualSizeBytes = sizeBytes;
  }

  /** @throws what the system says */
  static async open(path: string): Promise<FileSource> {
    const file = await open(path, 'r');
    try {
      return new FileSource(file, (await file.stat()).size);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  extents(): Promise<readonly Extent[]> {
    const { virtualSizeBytes } = this;
    return Promise.resolve(
      virtualSizeBytes === 0 ? [] : [{ offsetBytes: 0, lengthBytes: virtualSizeBytes, zero: false }],
    );
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    let done = 0;
    while (done < target.length) {
      signal?.throwIfAborted();
      const { bytesRead } = await this.#file.read(target, done, target.length - done, offsetBytes + done);
      // Its length was told by it: whoever cuts it meanwhile must not have zeros stored in its place.
      if (bytesRead === 0)
        throw new Error(`the file became shorter while it was read, at ${offsetBytes + done}`);
      done += bytesRead;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}
