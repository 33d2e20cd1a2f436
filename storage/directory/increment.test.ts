import { randomBytes } from 'node:crypto';
import { copyFile, mkdtemp, open, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import * as fc from 'fast-check';
import t from 'tap';
import type { Test } from 'tap';
import { hashFile } from '../../common/copy.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import { type StoredParent, writeIncrement } from './increment.ts';
import { writeQcow2 } from './qcow2Writer.ts';
import { GeneratedSource, turns } from './volumeFixture.ts';

const kibibyte = 1024;
const mebibyte = 1024 * kibibyte;

async function directoryFor(test: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-'));
  test.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function qemuImg(...args: readonly string[]): Promise<string> {
  const { exitCode, all } = await execa('qemu-img', args, { timeout: 60_000, reject: false, all: true });
  return exitCode === 0 ? '' : all;
}

/** A volume in memory, whatever was written to it. */
class MemorySource implements VolumeSource {
  readonly content: Buffer;
  readonly #zeros: readonly Extent[];
  readBytes = 0;

  constructor(content: Buffer, zeros: readonly Extent[] = []) {
    this.content = content;
    this.#zeros = zeros;
  }

  get virtualSizeBytes(): number {
    return this.content.length;
  }

  async extents(): Promise<readonly Extent[]> {
    return this.#zeros;
  }

  async readInto(target: Buffer, offsetBytes: number): Promise<void> {
    this.readBytes += target.length;
    this.content.copy(target, 0, offsetBytes);
  }
}

async function parentOf(path: string): Promise<StoredParent> {
  const { sizeBytes, sha256, sums } = await hashFile(path, { digest: 'chunks' });
  await writeFile(`${path}.sums`, sums ?? '');
  return { path, sizeBytes, sha256 };
}

/** What is wrong with an image that should hold this content; `''`: nothing. */
async function problemOf(image: string, content: Buffer): Promise<string> {
  const reference = `${image}.reference`;
  await writeFile(reference, content);
  const problem =
    (await qemuImg('check', '-f', 'qcow2', image)) ||
    (await qemuImg('compare', '-f', 'raw', '-F', 'qcow2', reference, image));
  await rm(reference);
  return problem;
}

/** Writes the changes of a content into an increment on an image, and looks whether it holds them and nothing else. */
async function increment(
  parentPath: string,
  to: string,
  content: Buffer,
  changes: readonly Extent[],
): Promise<void> {
  const before = await parentOf(parentPath);
  const written = await writeIncrement(new MemorySource(content), changes, before, to);
  const problem = await problemOf(to, content);
  if (problem !== '') throw new Error(problem);
  const hashed = await hashFile(to, { digest: 'chunks' });
  if (
    hashed.sums !== written.sums ||
    hashed.sha256 !== written.sha256 ||
    hashed.sizeBytes !== written.sizeBytes
  )
    throw new Error('the digests are not those of the file');
  if ((await hashFile(parentPath, { digest: 'chunks' })).sha256 !== before.sha256)
    throw new Error('the parent was changed');
}

/** Changes a content at random places. */
function changed(content: Buffer, edits: readonly Edit[]): readonly Extent[] {
  const sectors = content.length / 512;
  const stretches = edits.map(({ at, length, zero }) => {
    const first = Math.min(sectors - 1, Math.floor(at * sectors));
    const count = Math.min(sectors - first, Math.max(1, length));
    return { offsetBytes: first * 512, lengthBytes: count * 512, zero };
  });
  let end = 0;
  return stretches
    .toSorted((one, other) => one.offsetBytes - other.offsetBytes)
    .filter(({ offsetBytes, lengthBytes }) => {
      const apart = offsetBytes >= end;
      if (apart) end = offsetBytes + lengthBytes;
      return apart;
    })
    .map((extent, index) => {
      const { offsetBytes, lengthBytes, zero } = extent;
      // Data may be zero, too.
      if (zero || index % 5 === 4) content.fill(0, offsetBytes, offsetBytes + lengthBytes);
      else randomBytes(lengthBytes).copy(content, offsetBytes);
      return extent;
    });
}

interface Edit {
  readonly at: number;
  readonly length: number;
  readonly zero: boolean;
}

const edits = fc.array(
  fc.record({
    at: fc.double({ min: 0, max: 1, noNaN: true }),
    length: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 300, max: 6000 })),
    zero: fc.boolean(),
  }),
  { maxLength: 12 },
);

void t.test(
  'any history of changes on any plain image reads back as QEMU would have written it',
  async (t) => {
    const directory = await directoryFor(t);
    const seed = Date.now();
    t.comment(`seed ${seed}`);
    const images = fc.constantFrom(
      [],
      ['-o', 'cluster_size=512'],
      ['-o', 'cluster_size=4k'],
      ['-o', 'cluster_size=2M'],
      ['-o', 'compat=0.10'],
      ['-o', 'lazy_refcounts=on'],
      ['-o', 'preallocation=metadata'],
    );
    const sizes = fc.integer({ min: 1, max: 24_000 }).map((sectors) => sectors * 512);
    await fc.assert(
      fc.asyncProperty(
        images,
        sizes,
        fc.array(edits, { minLength: 2, maxLength: 4 }),
        async (kind, size, rounds) => {
          const content = Buffer.alloc(size);
          const [first = [], ...others] = rounds;
          changed(content, first);
          const raw = join(directory, 'raw');
          await writeFile(raw, content);
          let image = join(directory, 'image-0');
          await qemuImg('create', '-q', '-f', 'qcow2', ...kind, image, String(size));
          const copied = await qemuImg('convert', '-n', '-f', 'raw', '-O', 'qcow2', raw, image);
          if (copied !== '') throw new Error(copied);
          for (const [index, edit] of others.entries()) {
            const next = join(directory, `image-${index + 1}`);
            await increment(image, next, content, changed(content, edit));
            image = next;
          }
          for (const name of await readdir(directory)) await rm(join(directory, name));
        },
      ),
      { seed, numRuns: 15 },
    );
  },
);

void t.test('images of our own writer take many increments, and do not grow by what is freed', async (t) => {
  const directory = await directoryFor(t);
  const size = 40 * mebibyte;
  const source = new GeneratedSource(size, turns([5 * mebibyte, 20 * mebibyte, size], false));
  let image = join(directory, 'image');
  await writeQcow2(source, image);
  const content = source.contentAt(0, size);
  const { size: firstBytes } = await stat(image);
  for (let round = 0; round < 6; round += 1) {
    // What was written last is discarded, and as much is written elsewhere.
    const [written, gone] = round % 2 === 0 ? [5, 30] : [30, 5];
    const changes = [written, gone]
      .toSorted((a, b) => a - b)
      .map((at) => ({ offsetBytes: at * mebibyte, lengthBytes: 8 * mebibyte, zero: at === gone }));
    for (const { offsetBytes, lengthBytes, zero } of changes) {
      if (zero) content.fill(0, offsetBytes, offsetBytes + lengthBytes);
      else randomBytes(lengthBytes).copy(content, offsetBytes);
    }
    const next = join(directory, `image-${round}`);
    await increment(image, next, content, changes);
    await rm(image);
    image = next;
  }
  const { size: lastBytes } = await stat(image);
  t.ok(lastBytes <= firstBytes + mebibyte, `${firstBytes} bytes, then ${lastBytes}`);
});

void t.test('only what has changed is read', async (t) => {
  const directory = await directoryFor(t);
  const size = 64 * mebibyte;
  const image = join(directory, 'image');
  const first = new GeneratedSource(size, turns([size], false));
  await writeQcow2(first, image);
  const source = new MemorySource(first.contentAt(0, size));
  source.content.fill(7, 10 * mebibyte, 10 * mebibyte + 100 * kibibyte);
  const changes = [{ offsetBytes: 10 * mebibyte, lengthBytes: 128 * kibibyte, zero: false }];
  const parent = await parentOf(image);
  const to = join(directory, 'next');
  const { sums } = await writeIncrement(source, changes, parent, to);
  t.equal(source.readBytes, 128 * kibibyte);
  t.equal(await problemOf(to, source.content), '');
  const before = ((await hashFile(image, { digest: 'chunks' })).sums ?? '').split('\n');
  const after = (sums ?? '').split('\n');
  t.equal(after.filter((line, index) => line !== before[index]).length, 1, 'one chunk has another digest');
});

void t.test('damage of the parent never gets a digest that fits it', async (t) => {
  const directory = await directoryFor(t);
  const size = 16 * mebibyte;
  const good = join(directory, 'good');
  const source = new GeneratedSource(size, turns([size], false));
  await writeQcow2(source, good);
  const parent = await parentOf(good);
  const flip = async (position: number): Promise<StoredParent> => {
    const path = join(directory, `damaged-${position}`);
    await copyFile(good, path);
    await copyFile(`${good}.sums`, `${path}.sums`);
    const file = await open(path, 'r+');
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, position);
    await file.write(Buffer.from([(byte[0] ?? 0) ^ 1]), 0, 1, position);
    await file.close();
    return { ...parent, path };
  };
  const changes = [{ offsetBytes: 9 * mebibyte, lengthBytes: 64 * kibibyte, zero: false }];
  const to = join(directory, 'next');
  const inTheTouchedChunk = await flip(9 * mebibyte + 900 * kibibyte);
  await t.rejects(writeIncrement(source, changes, inTheTouchedChunk, to), {
    name: 'Error',
    message: /not what was stored/,
  });
  t.notOk((await readdir(directory)).includes('next'), 'nothing is left of it');

  const elsewhere = await flip(15 * mebibyte);
  const made = await writeIncrement(source, changes, elsewhere, to).then(
    (digest) => digest,
    (error: unknown) => String(error),
  );
  // Without reflink the whole parent is compared; with it the other chunks keep the digests that they should have.
  if (typeof made === 'string') t.match(made, /not what was stored/);
  else t.not((await hashFile(to, { digest: 'chunks' })).sha256, made.sha256);
});

void t.test('what cannot be built on is named', async (t) => {
  const directory = await directoryFor(t);
  const size = mebibyte;
  const source = new MemorySource(Buffer.alloc(size, 5));
  const changes = [{ offsetBytes: 0, lengthBytes: 64 * kibibyte, zero: false }];
  const make = async (name: string, ...args: readonly string[]): Promise<string> => {
    const path = join(directory, name);
    const problem = await qemuImg('create', '-q', '-f', 'qcow2', ...args, path, String(size));
    if (problem !== '') throw new Error(problem);
    return path;
  };
  const refused = async (path: string, message: RegExp): Promise<void> => {
    const to = join(directory, 'next');
    await t.rejects(writeIncrement(source, changes, await parentOf(path), to), { message }, path);
  };
  const raw = join(directory, 'raw');
  await writeFile(raw, source.content);
  await refused(raw, /not a qcow2 image/);
  await refused(await make('subclusters', '-o', 'extended_l2=on'), /features/);
  await refused(await make('wide', '-o', 'refcount_bits=64'), /16 bits/);
  const overlay = join(directory, 'overlay');
  await qemuImg('create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', raw, overlay);
  await refused(overlay, /backing file/);
  const snapshot = await make('snapshot');
  await qemuImg('snapshot', '-c', 'one', snapshot);
  await refused(snapshot, /snapshots/);
  const bitmap = await make('bitmap');
  await qemuImg('bitmap', '--add', bitmap, 'one');
  await refused(bitmap, /bitmaps/);
  const compressed = join(directory, 'compressed');
  await qemuImg('convert', '-c', '-f', 'raw', '-O', 'qcow2', raw, compressed);
  await refused(compressed, /compressed/);
  const larger = join(directory, 'larger');
  await qemuImg('create', '-q', '-f', 'qcow2', larger, '2M');
  await refused(larger, /1048576 bytes, and had 2097152/);
  const parent = await parentOf(await make('no-sums'));
  await rm(`${parent.path}.sums`);
  await t.rejects(writeIncrement(source, changes, parent, join(directory, 'next')), {
    message: /sums is missing/,
  });
  await writeFile(`${parent.path}.sums`, 'x');
  await t.rejects(writeIncrement(source, changes, parent, join(directory, 'next')), {
    message: /sums is damaged/,
  });
  t.notOk((await readdir(directory)).includes('next'));
});
