import type { Extent, VolumeSource } from '../common/volumeSource.ts';

/** A volume in memory for tests of our server, which notes what is read of it and can be made to wait or to fail. */
export class ScriptedSource implements VolumeSource {
  readonly content: Buffer;
  readonly #extents: readonly Extent[];
  /** Where reads began, in their order. */
  readonly reads: number[] = [];
  mapsRead = 0;
  /** Waited for before a read; its error is the read's. */
  onRead: (offsetBytes: number, signal: AbortSignal | undefined) => Promise<void> | void = () => {};
  onMap: () => Promise<void> | void = () => {};

  /** @param extents all data unless told */
  constructor(content: Buffer, extents?: readonly Extent[]) {
    this.content = content;
    this.#extents = extents ?? [{ offsetBytes: 0, lengthBytes: content.length, zero: false }];
  }

  get virtualSizeBytes(): number {
    return this.content.length;
  }

  async extents(): Promise<readonly Extent[]> {
    this.mapsRead += 1;
    await this.onMap();
    return this.#extents;
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    if (offsetBytes < 0 || offsetBytes + target.length > this.content.length)
      throw new RangeError(`${target.length} bytes at ${offsetBytes}`);
    this.reads.push(offsetBytes);
    await this.onRead(offsetBytes, signal);
    this.content.copy(target, 0, offsetBytes);
  }
}

/** A read that is held back until somebody lets it go. */
export class Gate {
  readonly #open = Promise.withResolvers<void>();
  readonly #reached = Promise.withResolvers<void>();
  #waiting = 0;
  #wanted = 1;

  /** To be waited for by a read. */
  pass(): Promise<void> {
    this.#waiting += 1;
    if (this.#waiting >= this.#wanted) this.#reached.resolve();
    return this.#open.promise;
  }

  get waiting(): number {
    return this.#waiting;
  }

  /** Resolves when so many wait; to be called before. */
  reached(count: number): Promise<void> {
    this.#wanted = count;
    if (this.#waiting >= count) this.#reached.resolve();
    return this.#reached.promise;
  }

  open(): void {
    this.#open.resolve();
  }
}

/** A prime near 64 KiB: what repeats after it stands at another place in every block. */
const patternBytes = 65_521;

/** Content that is nowhere zero by itself, with zeros where the extents say so. */
export function contentOf(
  random: () => number,
  lengths: readonly { readonly lengthBytes: number; readonly zero: boolean }[],
): { readonly content: Buffer; readonly extents: readonly Extent[] } {
  const extents: Extent[] = [];
  let position = 0;
  for (const { lengthBytes, zero } of lengths) {
    extents.push({ offsetBytes: position, lengthBytes, zero });
    position += lengthBytes;
  }
  const pattern = Buffer.from(
    Uint8Array.from({ length: patternBytes }, () => 1 + Math.floor(random() * 255)),
  );
  const content = Buffer.alloc(position, pattern);
  for (const { offsetBytes, lengthBytes, zero } of extents)
    if (zero) content.fill(0, offsetBytes, offsetBytes + lengthBytes);
  return { content, extents };
}
