import { messageOf, StillpointError } from '../common/errors.ts';
import type { VolumeSource } from '../common/volumeSource.ts';
import { NbdError } from './errors.ts';
import type { ReadCache } from './readCache.ts';
import { ZeroMap } from './zeroMap.ts';

/** A volume as our server reads it: in blocks through a cache, and with a map of its zeros. */
export class CachedVolume {
  readonly name: string;
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly #source: VolumeSource;
  readonly #cache: ReadCache;
  readonly #number: number;
  readonly #end = new AbortController();
  /** What all blocks share that are known to be zero. */
  readonly #zeros: Buffer;
  #map: ZeroMap | undefined;
  #mapping: Promise<ZeroMap> | undefined;

  constructor(name: string, source: VolumeSource, cache: ReadCache) {
    this.name = name;
    this.sizeBytes = source.virtualSizeBytes;
    this.blockBytes = cache.blockBytes;
    this.#source = source;
    this.#cache = cache;
    this.#number = cache.addVolume(source.virtualSizeBytes);
    this.#zeros = Buffer.alloc(cache.blockBytes);
  }

  /** Where it is zero, once somebody has asked for it by `loadMap`. */
  get map(): ZeroMap | undefined {
    return this.#map;
  }

  /**
   * Where it is zero; read once. A failure is not kept.
   *
   * @throws NBD_SOURCE_FAILED, the same error for all who waited
   */
  async loadMap(): Promise<ZeroMap> {
    this.#mapping ??= this.#readMap();
    return this.#mapping;
  }

  /** A block that can be had without waiting. */
  peek(block: number): Buffer | undefined {
    const cached = this.#cache.get(this.#cache.keyOf(this.#number, block));
    if (cached !== undefined) return cached;
    const offsetBytes = block * this.blockBytes;
    const lengthBytes = this.#lengthOf(block);
    return this.#map?.isZeroRange(offsetBytes, lengthBytes) === true
      ? this.#zeros.subarray(0, lengthBytes)
      : undefined;
  }

  /**
   * A block.
   *
   * @throws NBD_SOURCE_FAILED, the same error for all who waited for this read
   */
  async read(block: number): Promise<Buffer> {
    const present = this.peek(block);
    if (present !== undefined) return present;
    const key = this.#cache.keyOf(this.#number, block);
    return this.#cache.read(key, this.#lengthOf(block), (target) => this.#readBlock(block, target));
  }

  /** Reads some blocks with data that come behind one, for somebody who will want them. What fails is read again. */
  readAhead(behind: number, count: number): void {
    let block = behind;
    for (let read = 0; read < count; read += 1) {
      block = this.nextDataBlock(block + 1);
      if (block * this.blockBytes >= this.sizeBytes) return;
      if (this.#cache.isEnough(this.#cache.keyOf(this.#number, block))) continue;
      this.read(block).catch(() => {}); // who needs the block reads it again, and hears of it
    }
  }

  /** The first block from here on that is not known to be zero. */
  nextDataBlock(block: number): number {
    const offsetBytes = block * this.blockBytes;
    if (this.#map === undefined || offsetBytes >= this.sizeBytes) return block;
    return Math.floor(this.#map.nextData(offsetBytes) / this.blockBytes);
  }

  /** Ends what is being read, and lets its blocks go. */
  close(): void {
    this.#end.abort(new NbdError('NBD_CLOSED', 'the server is closed'));
    this.#cache.removeVolume(this.#number);
  }

  #lengthOf(block: number): number {
    return Math.min(this.blockBytes, this.sizeBytes - block * this.blockBytes);
  }

  async #readBlock(block: number, target: Buffer): Promise<void> {
    const offsetBytes = block * this.blockBytes;
    try {
      await this.#source.readInto(target, offsetBytes, this.#end.signal);
      this.#end.signal.throwIfAborted();
    } catch (error) {
      throw this.#failed(`${target.length} bytes at ${offsetBytes} cannot be read`, error);
    }
  }

  async #readMap(): Promise<ZeroMap> {
    try {
      this.#map = ZeroMap.of(await this.#source.extents(this.#end.signal), this.sizeBytes);
      return this.#map;
    } catch (error) {
      this.#mapping = undefined;
      throw this.#failed('its map cannot be read', error);
    }
  }

  #failed(what: string, cause: unknown): NbdError {
    const { hint, retryable } = cause instanceof StillpointError ? cause : {};
    const message = `export "${this.name}": ${what}: ${messageOf(cause)}`;
    return new NbdError('NBD_SOURCE_FAILED', message, { cause, hint, retryable });
  }
}
