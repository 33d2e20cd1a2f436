import { hash, randomBytes } from 'node:crypto';
import { join } from 'node:path';
import t from 'tap';
import type { VolumeSource } from '../../common/volumeSource.ts';
import { newId } from '../../common/ids.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import type { Backend } from '../backends/backend.ts';
import { StorageError } from '../errors.ts';
import type { ContentReference } from './backupManifest.ts';
import { ChunkWorkers } from './chunkWorkers.ts';
import { laneCount } from './lanes.ts';
import { packIdOf } from './names.ts';
import { Repository } from './repository.ts';
import {
  initTestRepository,
  someVolume,
  testChunkBytes,
  testManifest,
  testSecret,
  testTime,
  volumeSource,
} from './repositoryFixture.ts';
import type { RepositorySession } from './session.ts';
import { bufferSource, writeStream } from './streamWriter.ts';

/* The writer at work on threads from its first byte on, as with a large volume. */

const options = { chunkSizeBytes: testChunkBytes };
const packBytes = 256 * 1024;

interface Stage {
  readonly store: ObjectStore;
  readonly repository: Repository;
  begin(): Promise<RepositorySession>;
}

/** @param backend what stands before the store */
async function threadedStage(
  backend: (client: Backend) => Backend = (client) => client,
  workers = new ChunkWorkers({ threads: 2, inlineBytes: 0 }),
): Promise<Stage> {
  const store = new ObjectStore();
  await initTestRepository(store.client(), packBytes);
  const repository = await Repository.open(backend(store.client()), testSecret, { workers });
  return {
    store,
    repository,
    begin: async () => repository.begin({ backupId: newId(), startedAt: testTime }),
  };
}

/** Commits a volume, and reads it as somebody else does. */
async function commitAndRead(
  stage: Stage,
  session: RepositorySession,
  content: ContentReference,
): Promise<Buffer> {
  const definition = await writeStream(bufferSource(Buffer.from('<domain/>')), session, options);
  await session.commit(testManifest(session.backupId, content, definition));
  const other = await Repository.open(stage.store.client(), testSecret);
  return (await other.openStream(content)).readAll();
}

/** The client of a store whose creations of packs go through a function of ours. */
function creatingPacks(client: Backend, before: (count: number) => Promise<void>): Backend {
  let count = 0;
  const create = client.create.bind(client);
  client.create = async (name, parts, call) => {
    if (name.startsWith('packs/')) await before(++count);
    return create(name, parts, call);
  };
  return client;
}

/** A gate that lets nobody through until it is opened. */
function gate() {
  const { promise, resolve } = Promise.withResolvers<void>();
  const arrived = Promise.withResolvers<void>();
  return {
    arrived: arrived.promise,
    open: resolve,
    pass: async () => {
      arrived.resolve();
      await promise;
    },
  };
}

void t.test('a volume is the same one, in the same order, whatever worked on it', async (t) => {
  const stage = await threadedStage();
  const volume = someVolume(300, 777);
  const progress: number[] = [];
  const session = await stage.begin();
  const content = await writeStream(volumeSource(volume), session, {
    ...options,
    onProgress: (bytes) => progress.push(bytes),
  });
  t.ok((await commitAndRead(stage, session, content)).equals(volume));
  t.same(
    progress,
    progress.toSorted((one, other) => one - other),
    'progress never goes back',
  );
  t.equal(progress.at(-1), volume.length);
  t.equal(
    session.statistics.newChunks,
    225 + 1 + 1 + 1 + 3,
    'chunks, the last one, a page, a root; the definition',
  );

  await stage.repository.close();
  t.equal(stage.repository.context.workers.running, 0, 'a repository that is closed leaves no thread');

  const inline = await Repository.open(stage.store.client(), testSecret);
  const again = await inline.begin({ backupId: newId(), startedAt: testTime });
  t.same(await writeStream(volumeSource(volume), again, options), content, 'here and on threads');
  t.equal(again.statistics.newChunks, 0);
});

void t.test('what is equal is stored once, though all of it is under way at once', async (t) => {
  for (const inlineBytes of [0, Number.POSITIVE_INFINITY]) {
    const stage = await threadedStage(undefined, new ChunkWorkers({ threads: 2, inlineBytes }));
    const session = await stage.begin();
    const piece = randomBytes(testChunkBytes);
    const volume = Buffer.concat(Array.from({ length: 64 }, () => piece));
    const content = await writeStream(volumeSource(volume), session, options);
    t.equal(session.statistics.newChunks, 3, 'a chunk, a page, a root');
    t.ok((await commitAndRead(stage, session, content)).equals(volume));
  }
});

void t.test(
  'a source that fails in the midst fails with its own error, and the session can go on',
  async (t) => {
    const stage = await threadedStage();
    const session = await stage.begin();
    const volume = someVolume(100);
    const good = volumeSource(volume);
    const lost = new Error('the disk of the guest is gone');
    const failing: VolumeSource = {
      ...good,
      readInto: async (target, offsetBytes, signal) => {
        if (offsetBytes >= 50 * testChunkBytes) throw lost;
        return good.readInto(target, offsetBytes, signal);
      },
    };
    const failure = await writeStream(failing, session, options).catch((error: unknown) => error);
    t.equal(failure, lost);
    const content = await writeStream(good, session, options);
    t.ok((await commitAndRead(stage, session, content)).equals(volume));
  },
);

void t.test(
  'a pack that cannot be stored fails the stream, and is stored under another name later',
  async (t) => {
    const full = new StorageError('STORAGE_FULL', 'no space');
    for (const failing of [1, 2, 5]) {
      const stage = await threadedStage((client) =>
        creatingPacks(client, async (count) => {
          if (count === failing) throw full;
        }),
      );
      const session = await stage.begin();
      const volume = someVolume(60);
      const failure = await writeStream(volumeSource(volume), session, options).catch(
        (error: unknown) => error,
      );
      t.equal(failure, full, `pack ${failing}`);
      const content = await writeStream(volumeSource(volume), session, options);
      t.ok((await commitAndRead(stage, session, content)).equals(volume));
      t.equal(session.statistics.newChunks, 45 + 2 + 3, 'nothing is lost, nothing twice');
    }
  },
);

void t.test(
  'the memory of a pack whose call was given up stays as it is: what failed may still be reading it',
  async (t) => {
    const silent = new StorageError('STORAGE_UNREACHABLE', 'no answer in time');
    const givenUp: { readonly name: string; readonly parts: readonly Buffer[] }[] = [];
    const stage = await threadedStage((client) => {
      const create = client.create.bind(client);
      client.create = async (name, parts, call) => {
        if (!name.startsWith('packs/') || givenUp.length === 3) return create(name, parts, call);
        givenUp.push({ name, parts });
        throw silent;
      };
      return client;
    });
    const session = await stage.begin();
    const volume = someVolume(200);
    const write = () => writeStream(volumeSource(volume), session, options);
    const isTold = (error: unknown): void => void t.equal(error, silent);
    while (givenUp.length < 3) await write().catch(isTold);
    // What was given up last may be told to the next one.
    const content = await write().catch(write);
    t.ok((await commitAndRead(stage, session, content)).equals(volume));
    for (const { name, parts } of givenUp)
      t.equal(packIdOf(name)?.toString('hex'), hash('sha256', Buffer.concat(parts)), name);
  },
);

void t.test(
  'a pack that fails behind the last chunk fails the flush, so that nothing is taken for stored',
  async (t) => {
    const full = new StorageError('STORAGE_FULL', 'no space');
    const blocked = gate();
    const stage = await threadedStage((client) =>
      creatingPacks(client, async (count) => {
        if (count > 1) return;
        await blocked.pass();
        throw full;
      }),
    );
    const session = await stage.begin();
    const volume = someVolume(6);
    const content = await writeStream(volumeSource(volume), session, options);
    await blocked.arrived;
    const flushed = session.flush().catch((error: unknown) => error);
    blocked.open();
    t.equal(await flushed, full);
    t.ok((await commitAndRead(stage, session, content)).equals(volume), 'the next one stores it');
  },
);

void t.test('a store that does not answer holds up the reading, not the cancelling', async (t) => {
  const blocked = gate();
  const stage = await threadedStage((client) => creatingPacks(client, blocked.pass));
  const session = await stage.begin();
  const volume = someVolume(400);
  const source = volumeSource(volume);
  let read = 0;
  const counting: VolumeSource = {
    ...source,
    readInto: async (target, offsetBytes, signal) => {
      read += target.length;
      return source.readInto(target, offsetBytes, signal);
    },
  };
  const cancel = new AbortController();
  const { signal } = cancel;
  const reason = new Error('the operator has thought better of it');
  const writing = writeStream(counting, session, { ...options, signal }).catch((error: unknown) => error);
  await blocked.arrived;
  // All packs that may be on their way, the one that is filled, what is being worked on.
  const boundBytes = 5 * (packBytes + testChunkBytes) + laneCount(testChunkBytes) * testChunkBytes;
  t.ok(boundBytes < volume.length / 3, 'the bound is one');
  // The last chunks come from threads: when these stand still, so does all.
  let before = -1;
  while (read !== before) {
    before = read;
    await stage.repository.context.workers.run({ kind: 'digest', parts: [] });
    await stage.repository.context.workers.run({ kind: 'digest', parts: [] });
  }
  t.ok(read <= boundBytes, `${read} bytes were read, ${boundBytes} may be`);
  cancel.abort(reason);
  t.equal(await writing, reason);
  const abandoned = session.abandon();
  blocked.open();
  t.equal(await abandoned, 'abandoned');
});

void t.test('a source that does not answer is not waited for once it was cancelled', async (t) => {
  const stage = await threadedStage();
  const session = await stage.begin();
  const source = volumeSource(someVolume(40));
  const cancel = new AbortController();
  const reason = new Error('cancelled');
  const stuck: VolumeSource = {
    ...source,
    readInto: async (target, offsetBytes) => {
      if (offsetBytes < 20 * testChunkBytes) return source.readInto(target, offsetBytes);
      cancel.abort(reason);
      return new Promise<void>(() => undefined);
    },
  };
  const { signal } = cancel;
  t.equal(await writeStream(stuck, session, { ...options, signal }).catch((error: unknown) => error), reason);
  const before = AbortSignal.abort(reason);
  const content = writeStream(source, session, { ...options, signal: before });
  t.equal(await content.catch((error: unknown) => error), reason, 'and nothing begins');
});

void t.test('a thread that dies fails the backup for good: one of its packs has a gap', async (t) => {
  const file = join(
    t.testdir({
      'worker.mjs': `import { parentPort } from 'node:worker_threads';
import { perform } from ${JSON.stringify(join(import.meta.dirname, 'chunkTasks.ts'))};
let seals = 0;
parentPort.on('message', (task) => {
  if (task.kind === 'seal' && ++seals === 10) process.exit(1);
  parentPort.postMessage({ result: perform(task) });
});`,
    }),
    'worker.mjs',
  );
  const stage = await threadedStage(undefined, new ChunkWorkers({ threads: 2, inlineBytes: 0, file }));
  const session = await stage.begin();
  const volume = someVolume(80);
  await t.rejects(writeStream(volumeSource(volume), session, options), { message: /thread .* has ended/ });
  await t.rejects(session.flush(), { message: /thread .* has ended/ });
  t.equal(await session.abandon(), 'abandoned');
  const next = await Repository.open(stage.store.client(), testSecret);
  const retried = await next.begin({ backupId: newId(), startedAt: testTime });
  const content = await writeStream(volumeSource(volume), retried, options);
  t.ok((await commitAndRead(stage, retried, content)).equals(volume), 'the next one is whole');
});

void t.test('buffers are used again, however long the volume is', async (t) => {
  const stage = await threadedStage();
  const session = await stage.begin();
  const volume = someVolume(500);
  const source = volumeSource(volume);
  const buffers = new Set<ArrayBufferLike>();
  const counting: VolumeSource = {
    ...source,
    readInto: async (target, offsetBytes, signal) => {
      buffers.add(target.buffer);
      return source.readInto(target, offsetBytes, signal);
    },
  };
  await writeStream(counting, session, options);
  await session.flush();
  t.ok(buffers.size <= laneCount(testChunkBytes), `${buffers.size} buffers`);
  t.ok(laneCount(1024 * 1024) * 1024 * 1024 <= 24 * 1024 * 1024);
  // Four packs on their way and one that is filled, and of each its last segment.
  t.ok(session.packMemoryBytes <= 2 * 5 * (packBytes + 2 * 64 * 1024), `${session.packMemoryBytes} bytes`);
});
