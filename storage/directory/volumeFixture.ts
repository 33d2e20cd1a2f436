import { open, rm } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { execa } from 'execa';
import { readImageInfo } from '../../common/qemuImage.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';

const mebibyte = 1024 * 1024;

/** Byte of a volume at a position, the same whenever it is asked for. Never zero. */
function byteAt(position: number): number {
  return (Math.imul(Math.floor(position / 512), 2_654_435_761) >>> 24) | 1;
}

/** Extents that end at these positions, the kinds taking turns and beginning with `zero`. */
export function turns(ends: readonly number[], zero: boolean): readonly Extent[] {
  return ends
    .map((end, index) => {
      const offsetBytes = ends[index - 1] ?? 0;
      return { offsetBytes, lengthBytes: end - offsetBytes, zero: zero === (index % 2 === 0) };
    })
    .filter(({ lengthBytes }) => lengthBytes > 0);
}

/**
 * A volume whose content follows from the position: not zero inside `filled`, zero elsewhere. Remembers how much
 * was read.
 */
export class GeneratedSource implements VolumeSource {
  readonly virtualSizeBytes: number;
  readonly #extents: readonly Extent[];
  readonly #filled: readonly (readonly [number, number])[];
  reads = 0;
  bytesInFlight = 0;
  maxBytesInFlight = 0;

  constructor(
    virtualSizeBytes: number,
    extents: readonly Extent[],
    /** From and to before which position; the extents that are not zero unless told. */
    filled: readonly (readonly [number, number])[] = extents
      .filter(({ zero }) => !zero)
      .map(({ offsetBytes, lengthBytes }) => [offsetBytes, offsetBytes + lengthBytes] as const),
  ) {
    this.virtualSizeBytes = virtualSizeBytes;
    this.#extents = extents;
    this.#filled = filled;
  }

  async extents(): Promise<readonly Extent[]> {
    await nextTurn();
    return this.#extents;
  }

  async readInto(target: Buffer, offsetBytes: number): Promise<void> {
    this.reads += 1;
    this.bytesInFlight += target.length;
    this.maxBytesInFlight = Math.max(this.maxBytesInFlight, this.bytesInFlight);
    await nextTurn();
    this.bytesInFlight -= target.length;
    this.contentAt(offsetBytes, target.length).copy(target);
  }

  contentAt(offsetBytes: number, lengthBytes: number): Buffer {
    const endBytes = offsetBytes + lengthBytes;
    const block = Buffer.alloc(lengthBytes);
    for (const [from, to] of this.#filled) {
      let at = Math.max(from, offsetBytes);
      while (at < Math.min(to, endBytes)) {
        const end = Math.min(at + 512 - (at % 512), to, endBytes);
        block.fill(byteAt(at), at - offsetBytes, end - offsetBytes);
        at = end;
      }
    }
    return block;
  }

  /** Writes the volume as a raw image, with holes where it is zero. */
  async writeReference(path: string): Promise<void> {
    const file: FileHandle = await open(path, 'w');
    try {
      for (const [from, to] of this.#filled)
        for (let at = from; at < to; at += mebibyte) {
          const block = this.contentAt(at, Math.min(mebibyte, to - at));
          await file.write(block, 0, block.length, at);
        }
      await file.truncate(this.virtualSizeBytes);
    } finally {
      await file.close();
    }
  }
}

/** What is wrong with an image that should hold this volume, as qemu-img sees it; `null`: nothing. */
export async function problemOfVolume(
  image: string,
  source: GeneratedSource,
  referencePath: string,
): Promise<string | null> {
  const qemuImg = async (...args: readonly string[]) =>
    execa('qemu-img', [...args], { timeout: 120_000, stdin: 'ignore', reject: false });
  // It exits with 2 for corruption and 3 for leaks.
  const check = await qemuImg('check', '-f', 'qcow2', image);
  if (check.exitCode !== 0 || !check.stdout.includes('No errors were found'))
    return check.stdout + check.stderr;
  const info = await readImageInfo(image, 'qcow2');
  if (info.virtualSizeBytes !== source.virtualSizeBytes || info.backing !== null) return JSON.stringify(info);
  await source.writeReference(referencePath);
  const compared = await qemuImg('compare', '-f', 'raw', '-F', 'qcow2', referencePath, image);
  await rm(referencePath);
  return compared.exitCode === 0 ? null : compared.stdout + compared.stderr;
}
