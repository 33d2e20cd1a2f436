/** How a cache is cut and how large it may grow. */
export interface ReadCacheOptions {
  /** What is read and kept as one: a power of two, 4 KiB to 4 MiB. 256 KiB unless told. */
  readonly blockBytes?: number | undefined;
  /** What all blocks have together, those that are being read among them. 64 MiB unless told. */
  readonly maxBytes?: number | undefined;
}

const defaultBlockBytes = 256 * 1024;
const defaultMaxBytes = 64 * 1024 * 1024;
const blockBytesLeast = 4 * 1024;
const blockBytesMost = 4 * 1024 * 1024;
/** Numbers of blocks below this go with the number of their volume into one safe integer. */
const blocksPerVolumeMax = 2 ** 32;

/**
 * Blocks of volumes that were read last, bounded in bytes and shared by all who read. Several that ask for one block
 * wait for one read; a failure is not kept.
 *
 * A block that is given out is never written to again, not even after it has left the cache: it may be on its way
 * through a socket.
 */
export class ReadCache {
  readonly blockBytes: number;
  readonly maxBytes: number;
  /** The one that was not asked for the longest comes first. */
  readonly #blocks = new Map<number, Buffer>();
  readonly #reading = new Map<number, Promise<Buffer>>();
  #heldBytes = 0;
  #readingBytes = 0;
  #volumes = 0;

  /** @throws RangeError for block sizes that are none, and a cache that holds not even one block */
  constructor(options: ReadCacheOptions = {}) {
    const { blockBytes = defaultBlockBytes, maxBytes = defaultMaxBytes } = options;
    const isPowerOfTwo = Number.isInteger(Math.log2(blockBytes));
    if (!isPowerOfTwo || blockBytes < blockBytesLeast || blockBytes > blockBytesMost)
      throw new RangeError(`blocks of ${blockBytes} bytes`);
    if (!(maxBytes >= blockBytes)) throw new RangeError(`a cache of ${maxBytes} bytes for such blocks`);
    this.blockBytes = blockBytes;
    this.maxBytes = maxBytes;
  }

  /** What the blocks take that are there or being read. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /**
   * A number for a volume, which `keyOf` takes.
   *
   * @throws RangeError for a volume of more than 2^32 blocks, 1 PiB in those of 256 KiB
   */
  addVolume(sizeBytes: number): number {
    if (sizeBytes > blocksPerVolumeMax * this.blockBytes)
      throw new RangeError(`${sizeBytes} bytes are too many for blocks of ${this.blockBytes}`);
    return this.#volumes++;
  }

  /** The blocks of a volume are not needed any more. */
  removeVolume(volume: number): void {
    for (const [key, block] of this.#blocks)
      if (Math.floor(key / blocksPerVolumeMax) === volume) this.#drop(key, block);
  }

  keyOf(volume: number, block: number): number {
    return volume * blocksPerVolumeMax + block;
  }

  /** A block that is there. */
  get(key: number): Buffer | undefined {
    const block = this.#blocks.get(key);
    if (block === undefined) return undefined;
    this.#blocks.delete(key);
    this.#blocks.set(key, block);
    return block;
  }

  /** A block that is there, or the one read that brings it. Rejects with the error of `load`. */
  async read(key: number, lengthBytes: number, load: (target: Buffer) => Promise<void>): Promise<Buffer> {
    return this.get(key) ?? this.#reading.get(key) ?? this.#load(key, lengthBytes, load);
  }

  /** Whether a block need not be read ahead: it is there, being read, or there is no room for what nobody waits for. */
  isEnough(key: number): boolean {
    const isBusy = this.#readingBytes + this.blockBytes > this.maxBytes / 2;
    return isBusy || this.#blocks.has(key) || this.#reading.has(key);
  }

  #load(key: number, lengthBytes: number, load: (target: Buffer) => Promise<void>): Promise<Buffer> {
    const block = Buffer.allocUnsafeSlow(lengthBytes);
    this.#heldBytes += lengthBytes;
    this.#readingBytes += lengthBytes;
    this.#makeRoom();
    const reading = load(block).then(
      () => {
        this.#reading.delete(key);
        this.#readingBytes -= lengthBytes;
        this.#blocks.set(key, block);
        this.#makeRoom();
        return block;
      },
      (error: unknown) => {
        this.#reading.delete(key);
        this.#readingBytes -= lengthBytes;
        this.#heldBytes -= lengthBytes;
        throw error;
      },
    );
    this.#reading.set(key, reading);
    return reading;
  }

  #makeRoom(): void {
    for (const [key, block] of this.#blocks) {
      if (this.#heldBytes <= this.maxBytes) return;
      this.#drop(key, block);
    }
  }

  #drop(key: number, block: Buffer): void {
    this.#blocks.delete(key);
    this.#heldBytes -= block.length;
  }
}
