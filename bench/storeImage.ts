import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { type Lab, type LabMachine } from '../test/lab/lab.ts';
import { qemuIo } from '../test/lab/qemuIo.ts';

export const mib = 1024 * 1024;
const pageBytes = 4096;
/** Data and holes begin at multiples of it, as in a qcow2 image. */
const clusterBytes = 64 * 1024;
const extentBytesMax = 4 * mib;
/** The writer of the guest has the first so many bytes of each volume. */
export const writerBytes = 32 * mib;
/** One stretch of data without a hole behind that, in which reads are measured. */
export const solidBytes = 64 * mib;

/** A stretch of a volume that holds data. */
export interface DataExtent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** Numbers below `limit` that depend on the seed alone. */
export function seededNumbers(seed: number): (limit: number) => number {
  let state = seed >>> 0;
  return (limit) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}

/**
 * Content of which no page is another's copy: of four pages three are words, which compress, and one is random, so that
 * zstd makes about 0.4 of it, as of the system volumes of real machines.
 */
export class MixedContent {
  readonly #numbers: (limit: number) => number;
  readonly #words = Buffer.alloc(32 * mib);
  readonly #noise = randomBytes(32 * mib);

  constructor(seed: number) {
    this.#numbers = seededNumbers(seed);
    const words = Array.from({ length: 4096 }, () =>
      Array.from({ length: 3 + this.#numbers(9) }, () => String.fromCharCode(97 + this.#numbers(26))).join(
        '',
      ),
    );
    // Small numbers come more often, as common words do.
    const word = (): string => words[Math.min(this.#numbers(4096), this.#numbers(4096))] ?? '';
    for (let at = 0; at < this.#words.length; ) at += this.#words.write(`${word()} `, at, 'latin1');
  }

  fill(target: Buffer): Buffer {
    for (let at = 0; at < target.length; at += pageBytes) {
      const pool = at % (4 * pageBytes) === 0 ? this.#noise : this.#words;
      const from = this.#numbers(pool.length - pageBytes);
      pool.copy(target, at, from, from + Math.min(pageBytes, target.length - at));
    }
    return target;
  }
}

/** Where a volume has data: one solid stretch, then stretches of 64 KiB to 4 MiB evenly over the rest. */
export function layoutOf(sizeBytes: number, dataBytes: number, seed: number): readonly DataExtent[] {
  const numbers = seededNumbers(seed);
  const clusters = (bytesMax: number): number =>
    (1 + numbers(Math.max(1, Math.floor(bytesMax / clusterBytes)))) * clusterBytes;
  const extents: DataExtent[] = [{ offsetBytes: writerBytes, lengthBytes: solidBytes }];
  const begin = writerBytes + solidBytes;
  const share = (dataBytes - solidBytes) / (sizeBytes - begin);
  for (let offsetBytes = begin; ; ) {
    const lengthBytes = clusters(extentBytesMax);
    if (offsetBytes + lengthBytes > sizeBytes) return extents;
    extents.push({ offsetBytes, lengthBytes });
    offsetBytes += lengthBytes + clusters(extentBytesMax * (1 / share - 1));
  }
}

/** Writes a sparse raw file with content in these stretches. */
export async function writeRaw(
  path: string,
  sizeBytes: number,
  extents: readonly DataExtent[],
  content: MixedContent,
): Promise<void> {
  const file = await open(path, 'wx', 0o644);
  try {
    await file.truncate(sizeBytes);
    const buffer = Buffer.alloc(extentBytesMax);
    for (const { offsetBytes, lengthBytes } of extents)
      for (let done = 0; done < lengthBytes; done += buffer.length) {
        const piece = buffer.subarray(0, Math.min(buffer.length, lengthBytes - done));
        await file.write(content.fill(piece), 0, piece.length, offsetBytes + done);
      }
    await file.sync();
  } finally {
    await file.close();
  }
}

const changedBytes = 64 * mib;
/** Half of what changes is one stretch, as a new file; the rest are pieces that lie apart, evenly over the volume. */
const pieceBytes = 256 * 1024;

/** The stretches of an increment, the same ones each time. */
export function changesOf(sizeBytes: number): readonly DataExtent[] {
  const half = changedBytes / 2;
  const begin = writerBytes + half;
  const pieces = half / pieceBytes;
  const step = Math.floor((sizeBytes - begin) / pieces / pieceBytes) * pieceBytes;
  const apart = Array.from({ length: pieces }, (_, index) => ({
    offsetBytes: begin + index * step,
    lengthBytes: pieceBytes,
  }));
  return [{ offsetBytes: writerBytes, lengthBytes: half }, ...apart];
}

/** Writes new content over these stretches of a raw file. */
export async function changeRaw(
  path: string,
  changes: readonly DataExtent[],
  content: MixedContent,
): Promise<void> {
  const file = await open(path, 'r+');
  try {
    for (const { offsetBytes, lengthBytes } of changes)
      await file.write(content.fill(Buffer.alloc(lengthBytes)), 0, lengthBytes, offsetBytes);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** The same in a running machine, through its own device. */
export async function changeMachine(
  lab: Lab,
  machine: LabMachine,
  changes: readonly DataExtent[],
  content: MixedContent,
): Promise<void> {
  const directory = join(lab.imagesDir, `changes-${machine.name}`);
  await lab.run('mkdir', [directory]);
  const commands: string[] = [];
  for (const [number, { offsetBytes, lengthBytes }] of changes.entries()) {
    const path = join(directory, String(number));
    const file = await open(path, 'wx', 0o644);
    await file.writeFile(content.fill(Buffer.alloc(lengthBytes)));
    await file.close();
    commands.push(`write -q -s ${path} ${offsetBytes} ${lengthBytes}`);
  }
  await qemuIo(lab, machine, 'vda', commands);
  await lab.run('rm', ['-r', directory]);
}
