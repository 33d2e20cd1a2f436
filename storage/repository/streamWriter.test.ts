import t from 'tap';
import type { VolumeSource } from '../../common/volumeSource.ts';
import { newId } from '../../common/ids.ts';
import { idsPerPage } from './limits.ts';
import { testChunkBytes, testStage, testTime } from './repositoryFixture.ts';
import { writeStream } from './streamWriter.ts';

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
