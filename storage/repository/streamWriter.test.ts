import t from 'tap';
import type { Change, Extent, VolumeSource } from '../../common/volumeSource.ts';
import { newId } from '../../common/ids.ts';
import { idsPerPage } from './limits.ts';
import { testChunkBytes, testStage, testTime } from './repositoryFixture.ts';
import { bufferSource, writeStream } from './streamWriter.ts';

const options = { chunkSizeBytes: testChunkBytes };

void t.test('changes that lie apart are read together, though each is on another page', async (t) => {
  const { repository } = await testStage();
  const pages = 4;
  const sizeBytes = pages * idsPerPage * testChunkBytes;
  const empty = {
    virtualSizeBytes: sizeBytes,
    extents: () => Promise.resolve([]),
    readInto: () => Promise.resolve(),
  };
  const session = await repository.begin({ backupId: newId(), startedAt: testTime });
  const parent = await writeStream(empty, session, options);
  await session.flush();
  const changes = Array.from({ length: pages }, (_, page) => ({
    offsetBytes: page * idsPerPage * testChunkBytes,
    lengthBytes: testChunkBytes,
    zero: false,
  }));
  const second = Promise.withResolvers<void>();
  let reads = 0;
  const source: VolumeSource = {
    virtualSizeBytes: sizeBytes,
    extents: () => Promise.resolve(changes),
    readInto: async (target, offsetBytes) => {
      reads += 1;
      if (reads === 2) second.resolve();
      // Nothing is read until two are under way.
      await second.promise;
      target.fill(1 + offsetBytes / testChunkBytes / idsPerPage);
    },
  };
  const increment = { parent: await repository.openStream(parent), changes };
  const signal = AbortSignal.timeout(10_000);
  const progress: number[] = [];
  const onProgress = (bytes: number): number => progress.push(bytes);
  const content = await writeStream(source, session, { ...options, increment, signal, onProgress });
  await session.flush();
  repository.forgetIndex();
  const stream = await repository.openStream(content);
  const found = (await stream.extents()).filter(({ zero }) => !zero);
  t.same(found, changes);
  const chunk = Buffer.alloc(testChunkBytes);
  for (const [page, { offsetBytes }] of changes.entries()) {
    await stream.readInto(chunk, offsetBytes);
    t.ok(chunk.equals(Buffer.alloc(testChunkBytes, page + 1)), `page ${page}`);
  }
  t.same(
    progress,
    progress.toSorted((one, other) => one - other),
    'progress never goes back',
  );
  t.equal(progress.at(-1), sizeBytes);
});

void t.test(
  'zeros that nothing names are compared where that takes no reading, and read nowhere',
  async (t) => {
    const { repository } = await testStage();
    const before = Buffer.alloc(6.25 * testChunkBytes, 1);
    // Three chunks of zeros and data, and one of zeros alone.
    const half = testChunkBytes / 2;
    before.fill(0, half, testChunkBytes).fill(0, 2 * testChunkBytes, 2.5 * testChunkBytes);
    before.fill(0, 4 * testChunkBytes, 5.5 * testChunkBytes);
    const session = await repository.begin({ backupId: newId(), startedAt: testTime });
    const parent = await writeStream(bufferSource(before), session, options);
    await session.flush();
    const zeros = (offsetBytes: number, lengthBytes: number, unmarked = true) => ({
      offsetBytes,
      lengthBytes,
      zero: true,
      unmarked,
    });
    const reads: number[] = [];
    const incrementOf = async (after: Buffer, changes: readonly Change[]): Promise<Buffer> => {
      reads.length = 0;
      const extents = [...zeroExtentsOf(after)];
      const source: VolumeSource = {
        virtualSizeBytes: after.length,
        extents: () => Promise.resolve(extents),
        readInto: async (target, offsetBytes) => {
          reads.push(offsetBytes / testChunkBytes);
          after.copy(target, 0, offsetBytes, offsetBytes + target.length);
        },
      };
      const increment = { parent: await repository.openStream(parent), changes };
      const content = await writeStream(source, session, { ...options, increment });
      await session.flush();
      repository.forgetIndex();
      return (await repository.openStream(content)).readAll();
    };
    const unmarked = [
      zeros(half, half),
      zeros(2 * testChunkBytes, half),
      zeros(4 * testChunkBytes, 1.5 * testChunkBytes),
    ];
    t.ok((await incrementOf(before, unmarked)).equals(before), 'as it was');
    t.same(reads, [], 'and nothing of it was read');

    const changed = Buffer.from(before).fill(0, 3 * testChunkBytes, 4 * testChunkBytes);
    const whole = [...unmarked.slice(0, 2), zeros(3 * testChunkBytes, 2.5 * testChunkBytes)];
    t.ok((await incrementOf(changed, whole)).equals(changed), 'a chunk of zeros where the parent has data');
    t.same(reads, []);

    changed.fill(0, 5.5 * testChunkBytes);
    const behind = [...whole.slice(0, 2), zeros(3 * testChunkBytes, 3.25 * testChunkBytes)];
    t.ok((await incrementOf(changed, behind)).equals(changed), 'up to the end of the volume');
    t.same(reads, []);

    changed.fill(0, 0.25 * testChunkBytes, half);
    const told = [zeros(0.25 * testChunkBytes, 0.75 * testChunkBytes, false), ...behind.slice(1)];
    t.ok((await incrementOf(changed, told)).equals(changed), 'zeros that are named');
    t.same(reads, [0], 'are read with the rest of their chunk');
  },
);

/** By the first byte of each quarter of a chunk. */
function* zeroExtentsOf(content: Buffer): Generator<Extent> {
  const lengthBytes = testChunkBytes / 4;
  for (let offsetBytes = 0; offsetBytes < content.length; offsetBytes += lengthBytes)
    yield { offsetBytes, lengthBytes, zero: content[offsetBytes] === 0 };
}
