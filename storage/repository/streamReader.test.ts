import { randomBytes, randomInt } from 'node:crypto';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { ObjectStore, randomFrom } from '../../test/sim/objectStore.ts';
import type { Backend } from '../backends/backend.ts';
import type { ContentReference } from './backupManifest.ts';
import { ChunkWorkers } from './chunkWorkers.ts';
import { packName } from './names.ts';
import { Repository } from './repository.ts';
import {
  initTestRepository,
  testChunkBytes,
  testSecret,
  testTime,
  volumeSource,
} from './repositoryFixture.ts';
import type { StreamReader } from './streamReader.ts';
import { writeStream } from './streamWriter.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats it`);

interface Stage {
  readonly store: ObjectStore;
  readonly volume: Buffer;
  readonly content: ContentReference;
  /** Reads of packs. */
  reads: number;
  /** What a read of a pack waits for. */
  before: () => Promise<void>;
  /** A reader of the volume with a repository of its own. */
  open(inlineBytes?: number): Promise<{ readonly reader: StreamReader; readonly repository: Repository }>;
}

/** Data, then zeros, then data, and a tail. */
async function storedVolume(chunks: number): Promise<Stage> {
  const store = new ObjectStore();
  const repository = await initTestRepository(store.client(), 2 * 1024 * 1024);
  const data = randomBytes((chunks / 2) * testChunkBytes);
  const volume = Buffer.concat([
    data,
    Buffer.alloc(1500 * testChunkBytes),
    data.subarray(1),
    Buffer.alloc(999, 1),
  ]);
  const session = await repository.begin({ backupId: newId(), startedAt: testTime });
  const content = await writeStream(volumeSource(volume), session, { chunkSizeBytes: testChunkBytes });
  await session.flush();
  const stage: Stage = {
    store,
    volume,
    content,
    reads: 0,
    before: () => Promise.resolve(),
    open: async (inlineBytes = 0) => {
      const client: Backend = store.client();
      const read = client.read.bind(client);
      client.read = async (name, options) => {
        if (name.startsWith('packs/')) {
          stage.reads++;
          await stage.before();
        }
        options?.signal?.throwIfAborted();
        return read(name, options);
      };
      const workers = new ChunkWorkers({ threads: 2, inlineBytes });
      const opened = await Repository.open(client, testSecret, { workers });
      return { reader: await opened.openStream(content), repository: opened };
    },
  };
  return stage;
}

void t.test('who reads one piece after the other gets all of it, with few calls of the store', async (t) => {
  const stage = await storedVolume(200);
  const { volume } = stage;
  for (const pieceBytes of [testChunkBytes, 100_000, 5 * testChunkBytes]) {
    const { reader } = await stage.open();
    stage.reads = 0;
    const copy = Buffer.alloc(volume.length, 9);
    for (let at = 0; at < volume.length; at += pieceBytes)
      await reader.readInto(copy.subarray(at, at + pieceBytes), at);
    t.ok(copy.equals(volume), `pieces of ${pieceBytes}`);
    t.ok(stage.reads < 120, `${stage.reads} reads for 200 chunks`);
    t.ok(reader.chunkBuffers <= 64, `${reader.chunkBuffers} buffers`);
  }
  const { reader } = await stage.open();
  t.ok((await reader.readAll()).equals(volume), 'at once');
  t.ok(reader.chunkBuffers <= 64);
});

void t.test('who reads here and there, several at once, gets what stands there', async (t) => {
  const stage = await storedVolume(120);
  const { volume } = stage;
  const random = randomFrom(seed);
  for (const inlineBytes of [0, Number.POSITIVE_INFINITY]) {
    const { reader } = await stage.open(inlineBytes);
    const actors = Array.from({ length: 12 }, async () => {
      for (let round = 0; round < 15; round++) {
        const length = Math.floor(random() * 4 * testChunkBytes);
        const at = Math.floor(random() * (volume.length - length));
        const target = Buffer.alloc(length, 9);
        await reader.readInto(target, at);
        if (!target.equals(volume.subarray(at, at + length)))
          t.fail(`${length} bytes at ${at}, seed ${seed}`);
      }
    });
    await Promise.all(actors);
    t.ok(reader.chunkBuffers <= 64);
  }
});

void t.test('a read that is cancelled harms nobody who waits for the same chunk', async (t) => {
  const stage = await storedVolume(20);
  const { reader } = await stage.open();
  await reader.chunkId(0);
  const hung = Promise.withResolvers<void>();
  const arrived = Promise.withResolvers<void>();
  stage.before = async () => {
    arrived.resolve();
    await hung.promise;
  };
  const cancel = new AbortController();
  const reason = new Error('cancelled');
  const target = Buffer.alloc(testChunkBytes);
  const first = reader
    .readInto(Buffer.alloc(testChunkBytes), 0, cancel.signal)
    .catch((error: unknown) => error);
  await arrived.promise;
  const second = reader.readInto(target, 0);
  cancel.abort(reason);
  t.equal(await first, reason, 'while the store does not answer');
  hung.resolve();
  await second;
  t.ok(target.equals(stage.volume.subarray(0, testChunkBytes)));
});

void t.test('a damaged chunk fails its readers, and no neighbour that was read with it', async (t) => {
  const stage = await storedVolume(40);
  const { reader, repository } = await stage.open();
  const bad = 7;
  const index = await repository.index();
  const [place] = index.find(await reader.chunkId(bad));
  if (place === undefined) throw new Error('no chunk');
  stage.store.damage(packName(index.pack(place.pack).id), (place.entry.offsetBytes + 100) * 8);
  const target = Buffer.alloc(testChunkBytes);
  for (let chunk = 0; chunk < 20; chunk++) {
    const reading = reader.readInto(target, chunk * testChunkBytes);
    if (chunk === bad) {
      await t.rejects(reading, { code: 'REPOSITORY_DAMAGED' });
      continue;
    }
    await reading;
    const right = stage.volume.subarray(chunk * testChunkBytes, (chunk + 1) * testChunkBytes);
    if (!target.equals(right)) t.fail(`chunk ${chunk}`);
  }
  await t.rejects(reader.readAll(), { code: 'REPOSITORY_DAMAGED' });
});

void t.test('a store that fails while it is read fails the read, and the next one succeeds', async (t) => {
  const stage = await storedVolume(40);
  const { reader } = await stage.open();
  const lost = new Error('the connection was lost');
  const target = Buffer.alloc(10 * testChunkBytes);
  stage.before = () => Promise.reject(lost);
  t.equal(await reader.readInto(target, 0).catch((error: unknown) => error), lost);
  stage.before = () => Promise.resolve();
  await reader.readInto(target, 0);
  t.ok(target.equals(stage.volume.subarray(0, target.length)));
});

void t.test('who walks over a stream does not wait for one page after the other', async (t) => {
  const stage = await storedVolume(200);
  const { reader } = await stage.open();
  t.equal(reader.root.pageIds.length, 2);
  const both = Promise.withResolvers<void>();
  stage.reads = 0;
  // No page is read until both are asked for.
  stage.before = async () => {
    if (stage.reads === 2) both.resolve();
    await both.promise;
  };
  const extents = await reader.extents(AbortSignal.timeout(10_000));
  t.same(
    extents.filter(({ zero }) => zero),
    [{ offsetBytes: 100 * testChunkBytes, lengthBytes: 1500 * testChunkBytes, zero: true }],
  );
});
