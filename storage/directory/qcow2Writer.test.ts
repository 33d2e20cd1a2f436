import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import t from 'tap';
import type { Test } from 'tap';
import { BandwidthLimit } from '../../common/bandwidth.ts';
import { hashFile } from '../../common/copy.ts';
import { planQcow2 } from '../../common/qcow2/layout.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import { writeQcow2 } from './qcow2Writer.ts';
import { SourceFailure } from './sourceReader.ts';
import { GeneratedSource, problemOfVolume, turns } from './volumeFixture.ts';

const clusterBytes = 64 * 1024;
const mebibyte = 1024 * 1024;
const gibibyte = 1024 * mebibyte;
const tebibyte = 1024 * gibibyte;

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

async function directoryFor(test: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-'));
  test.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** The source, with one thing replaced. */
function changed(source: VolumeSource, change: Partial<VolumeSource>): VolumeSource {
  return {
    virtualSizeBytes: source.virtualSizeBytes,
    extents: (signal) => source.extents(signal),
    readInto: (target, offsetBytes, signal) => source.readInto(target, offsetBytes, signal),
    ...change,
  };
}

function covers(target: Buffer, offsetBytes: number, position: number): boolean {
  return offsetBytes <= position && position < offsetBytes + target.length;
}

/** Writes, and asks qemu-img whether it is the volume and the file whether it has that digest. */
async function writeAndCompare(directory: string, source: GeneratedSource): Promise<string | null> {
  const to = join(directory, 'image.qcow2');
  const digest = await writeQcow2(source, to);
  const hashed = await hashFile(to, { digest: 'chunks' });
  const problem = await problemOfVolume(to, source, join(directory, 'reference'));
  await rm(to);
  if (JSON.stringify(digest) !== JSON.stringify(hashed))
    return `${JSON.stringify(digest)} instead of ${JSON.stringify(hashed)}`;
  return problem;
}

void t.test('whatever the size and wherever the zeros, QEMU reads the volume from it', async (t) => {
  const directory = await directoryFor(t);
  const seed = Date.now();
  t.comment(`seed ${seed}`);
  const sizes = fc.oneof(
    fc.constantFrom(0, 512, clusterBytes - 512, clusterBytes, clusterBytes + 512, 2 * mebibyte + 512),
    fc.integer({ min: 0, max: (6 * mebibyte) / 512 }).map((sectors) => sectors * 512),
    fc.constantFrom(512 * mebibyte, 512 * mebibyte + 512, gibibyte),
  );
  const parts = fc.uniqueArray(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(sizes, parts, fc.boolean(), fc.nat({ max: 3 }), async (sizeBytes, cuts, zero, empty) => {
      const positions = cuts.toSorted((one, other) => one - other);
      const part = (from: number, to: number, inside: readonly number[]): readonly Extent[] =>
        turns([...inside.map((cut) => Math.floor(cut * (to - from))), to - from], zero).map((extent) => ({
          ...extent,
          offsetBytes: extent.offsetBytes + from,
        }));
      // Large volumes have theirs at both ends, so that they stay cheap.
      const extents =
        sizeBytes <= 8 * mebibyte
          ? part(0, sizeBytes, positions)
          : [
              ...part(0, mebibyte + 7, positions),
              { offsetBytes: mebibyte + 7, lengthBytes: sizeBytes - 2 * mebibyte - 7, zero: true },
              ...part(sizeBytes - mebibyte, sizeBytes, positions),
            ];
      const filled = extents
        .filter((extent, index) => !extent.zero && index % 4 !== empty) // data may be zero, too
        .map(({ offsetBytes, lengthBytes }) => [offsetBytes, offsetBytes + lengthBytes] as const);
      const problem = await writeAndCompare(directory, new GeneratedSource(sizeBytes, extents, filled));
      if (problem !== null) throw new Error(problem);
    }),
    { seed, numRuns: 40 },
  );
});

void t.test(
  'a volume with more data than the list of its digests can hold is refused before it is read',
  async (t) => {
    const directory = await directoryFor(t);
    const size = 8 * 1024 * gibibyte;
    const source = new GeneratedSource(size, turns([size], false));
    await t.rejects(writeQcow2(source, join(directory, 'image')), {
      name: 'RangeError',
      message: /are the most/,
    });
    t.equal(source.reads, 0);
    t.same(await readdir(directory), []);
  },
);

void t.test('a volume has many L2 tables, and more than one refcount block', async (t) => {
  const directory = await directoryFor(t);
  const size = 3 * gibibyte + 512;
  const extents = turns([700_001, gibibyte + 5, 3 * gibibyte, size], false);
  const filled = [
    [0, 700_001],
    [gibibyte + 5, gibibyte + 3 * mebibyte],
    [2 * gibibyte - 100, 2 * gibibyte + 100_000],
    [3 * gibibyte - clusterBytes, 3 * gibibyte],
  ] as const;
  const source = new GeneratedSource(size, extents, filled);
  t.equal(await writeAndCompare(directory, source), null);
  t.match(planQcow2(size, extents).clusters, { l2Tables: 5, refcountBlocks: 2 });
  t.ok(source.maxBytesInFlight <= 24 * mebibyte, 'the memory for reading is bounded');
  t.ok(source.maxBytesInFlight > 8 * mebibyte, 'reads overlap');
});

void t.test('what reads as zero takes no space, neither known before nor found out', async (t) => {
  const to = join(await directoryFor(t), 'image');
  const size = 10 * tebibyte;
  const [near, far] = [5 * tebibyte, 9 * tebibyte + 65_000];
  const ends = [near, near + 100_000, far, far + 64 * mebibyte, size];
  const source = new GeneratedSource(size, turns(ends, true), [
    [near, near + 100_000],
    [far + 9 * mebibyte, far + 9 * mebibyte + 1],
  ]);
  const { sizeBytes } = await writeQcow2(source, to);
  const { blocks, size: fileBytes } = await stat(to);
  t.equal(fileBytes, sizeBytes);
  t.ok(sizeBytes < 66 * mebibyte, `${sizeBytes} bytes`);
  t.ok(blocks * 512 <= 11 * clusterBytes, `${blocks * 512} bytes on the disk`);
});

void t.test('200 000 extents are no reason to be slow', async (t) => {
  const directory = await directoryFor(t);
  const ends: number[] = [];
  for (let at = 512; ends.length < 200_000; at += ends.length % 1000 === 0 ? 2 * clusterBytes : 1024)
    ends.push(at);
  const source = new GeneratedSource(ends.at(-1) ?? 0, turns(ends, true), []);
  const startedAt = performance.now();
  const digest = await writeQcow2(source, join(directory, 'image'));
  t.comment(`${digest.sizeBytes} bytes in ${Math.round(performance.now() - startedAt)} ms`);
  t.ok(performance.now() - startedAt < 15_000);
  t.same(digest, await hashFile(join(directory, 'image'), { digest: 'chunks' }));
});

void t.test('an error of the source ends it at once, also when another read never ends', async (t) => {
  const directory = await directoryFor(t);
  const to = join(directory, 'image');
  const good = new GeneratedSource(64 * mebibyte, turns([64 * mebibyte], false));
  const broken = Object.assign(new Error('EIO: read'), { code: 'EIO', syscall: 'read' });
  let signal: AbortSignal | undefined;
  const failing = changed(good, {
    readInto: (target, offsetBytes, given) => {
      signal = given;
      if (covers(target, offsetBytes, 20 * mebibyte)) return Promise.withResolvers<never>().promise;
      if (covers(target, offsetBytes, 25 * mebibyte)) return Promise.reject(broken);
      return good.readInto(target, offsetBytes);
    },
  });
  const error = await writeQcow2(failing, to).catch((thrown: unknown) => thrown);
  t.ok(error instanceof SourceFailure && error.cause === broken);
  t.equal(signal?.aborted, true, 'reads under way are told to stop');
  t.same(await readdir(directory), []);

  const mute = changed(good, { extents: () => Promise.reject(broken) });
  await t.rejects(writeQcow2(mute, to), { cause: broken });
  t.same(await readdir(directory), []);
});

void t.test('a source that does not say what all of its bytes are is refused', async (t) => {
  const directory = await directoryFor(t);
  const good = new GeneratedSource(8192, turns([4096, 8192], false));
  const lists = {
    gap: [...turns([2048], false), { offsetBytes: 4096, lengthBytes: 4096, zero: true }],
    short: turns([4096], false),
    beyond: turns([4096, 12_288], false),
    none: [],
  };
  for (const [name, extents] of Object.entries(lists)) {
    const source = changed(good, { extents: () => Promise.resolve(extents) });
    await t.rejects(writeQcow2(source, join(directory, 'image')), /the extents (?:go on|end) at/, name);
  }
  await t.rejects(
    writeQcow2(new GeneratedSource(1000, turns([1000], false)), join(directory, 'image')),
    /no size/,
  );
  t.same(await readdir(directory), [], 'not even a file is begun');
  t.equal(good.reads, 0);
});

void t.test('an abort ends it at once, whatever it is waiting for, and removes its file', async (t) => {
  const directory = await directoryFor(t);
  const to = join(directory, 'image');
  const reason = new Error('stop it');
  const good = new GeneratedSource(64 * mebibyte, turns([64 * mebibyte], false));
  const never = (): Promise<never> => Promise.withResolvers<never>().promise;

  await t.rejects(writeQcow2(good, to, { signal: AbortSignal.abort(reason) }), reason);
  const waits: Record<string, (abort: AbortController) => Promise<unknown>> = {
    extents: (abort) => {
      const extents = (): Promise<never> => {
        setImmediate(() => abort.abort(reason));
        return never();
      };
      return writeQcow2(changed(good, { extents }), to, { signal: abort.signal });
    },
    read: (abort) => {
      const readInto: VolumeSource['readInto'] = (target, offsetBytes) => {
        if (offsetBytes < 30 * mebibyte) return good.readInto(target, offsetBytes);
        setImmediate(() => abort.abort(reason));
        return never();
      };
      return writeQcow2(changed(good, { readInto }), to, { signal: abort.signal });
    },
    bandwidth: (abort) =>
      writeQcow2(good, to, {
        signal: abort.signal,
        limit: new BandwidthLimit(64 * 1024), // it would take minutes
        onProgress: () => setImmediate(() => abort.abort(reason)),
      }),
  };
  for (const [name, wait] of Object.entries(waits)) {
    const abort = new AbortController();
    await t.rejects(wait(abort), reason, name);
    t.equal(abort.signal.aborted, true);
    t.same(await readdir(directory), [], name);
  }
});

void t.test('it never overwrites, tells its progress, and holds back when told to', async (t) => {
  const directory = await directoryFor(t);
  const to = join(directory, 'image');
  const source = new GeneratedSource(8 * mebibyte, turns([8 * mebibyte], false));
  const progress: number[] = [];
  const startedAt = performance.now();
  const digest = await writeQcow2(source, to, {
    onProgress: (bytesDone) => progress.push(bytesDone),
    limit: new BandwidthLimit(16 * mebibyte),
    ownership: { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, mode: 0o640 },
  });
  t.ok(performance.now() - startedAt >= 450);
  t.equal(progress.at(-1), digest.sizeBytes);
  t.same(
    progress,
    progress.toSorted((a, b) => a - b),
  );
  t.equal((await stat(to)).mode & 0o7777, 0o640);
  await t.rejects(writeQcow2(source, to), { code: 'EEXIST' });
  t.same(await hashFile(to, { digest: 'chunks' }), digest);
});

void t.test('no rejection is left unhandled by any of this', (t) => {
  t.same(unhandled, []);
  t.end();
});
