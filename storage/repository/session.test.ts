import { randomBytes } from 'node:crypto';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { ObjectStore, type SimulatedClient } from '../../test/sim/objectStore.ts';
import { collect } from './collectionFixture.ts';
import { manifestName, sessionName } from './names.ts';
import { Repository } from './repository.ts';
import {
  backUp,
  initTestRepository,
  readVolume,
  testChunkBytes,
  testManifest,
  testSecret,
  testTime,
  volumeSource,
} from './repositoryFixture.ts';
import { writeStream } from './streamWriter.ts';

/** Packs of two chunks. */
const packSizeBytes = 2 * testChunkBytes;

async function beginAttempt(client: SimulatedClient, backupId: string) {
  const repository = await Repository.open(client, testSecret);
  return repository.begin({ backupId, startedAt: testTime, afterFence: true });
}

void t.test('what arrived before the store was full is not sent again by the next attempt', async (t) => {
  const store = new ObjectStore();
  const client = store.client();
  await initTestRepository(client, packSizeBytes);
  const id = newId();
  const volume = randomBytes(12 * testChunkBytes);
  const session = await beginAttempt(client, id);
  store.capacityBytes = store.usedBytes + 4.5 * packSizeBytes;
  await t.rejects(writeStream(volumeSource(volume), session, { chunkSizeBytes: testChunkBytes }), {
    code: 'STORAGE_FULL',
  });
  await session.suspend();
  t.same(store.names('sessions/'), [], 'nobody waits for it');
  store.capacityBytes = Number.POSITIVE_INFINITY;
  const repository = await Repository.open(client, testSecret);
  const next = await backUp(repository, volume, { id, afterFence: true });
  t.equal(next.session.attempt, 2);
  // The page, the root and the definition are in packs of another kind, and were never complete.
  const arrived = 12 + 4 - next.session.statistics.newChunks;
  t.ok(arrived >= 6, `${arrived} chunks had arrived`);
  t.ok((await readVolume(repository, next.manifest)).equals(volume));
});

void t.test('what is stored becomes known while more of it is stored, and no index is large', async (t) => {
  const store = new ObjectStore();
  const client = store.client();
  await initTestRepository(client, packSizeBytes);
  const [id, volume] = [newId(), randomBytes(40 * testChunkBytes)];
  const indexBytes = 300;
  const begin = async (backupId: string) =>
    (await Repository.open(client, testSecret)).begin({
      backupId,
      startedAt: testTime,
      indexBytes,
      afterFence: true,
    });
  const killed = await begin(id);
  await writeStream(volumeSource(volume), killed, { chunkSizeBytes: testChunkBytes });
  const { length } = store.names('indexes/');
  t.ok(length >= 5, `${length} indexes before anybody asks for them`);
  for (const name of store.names('indexes/'))
    t.ok(store.bytesOf(name).length < 4 * indexBytes, `${name} has ${store.bytesOf(name).length} bytes`);

  const session = await begin(newId());
  const content = await writeStream(volumeSource(volume), session, { chunkSizeBytes: testChunkBytes });
  t.ok(session.statistics.newChunks < 15, `${session.statistics.newChunks} of 40 chunks are stored again`);
  const { manifest } = await session.commit(testManifest(session.backupId, content, content));
  const repository = await Repository.open(client, testSecret);
  t.ok((await readVolume(repository, manifest)).equals(volume));
  const named = (await repository.index()).packs.map((pack) => pack.id.toString('hex'));
  t.equal(new Set(named).size, named.length, 'no pack is named twice');
});

void t.test('a session is not given up before an index of it that is on its way has arrived', async (t) => {
  const store = new ObjectStore();
  const client = store.client();
  await initTestRepository(client, packSizeBytes);
  const [begun, gate] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const create = client.create.bind(client);
  Object.assign(client, {
    create: async (...call: Parameters<typeof create>) => {
      if (!call[0].startsWith('indexes/')) return create(...call);
      begun.resolve();
      await gate.promise;
      return create(...call);
    },
  });
  const repository = await Repository.open(client, testSecret);
  const session = await repository.begin({ backupId: newId(), startedAt: testTime, indexBytes: 1 });
  const volume = randomBytes(9 * testChunkBytes);
  const writing = writeStream(volumeSource(volume), session, { chunkSizeBytes: testChunkBytes }).catch(
    () => null,
  );
  await begun.promise;
  const given = session.abandon();
  const outcome = await Promise.race([
    given,
    new Promise((resolve) => setTimeout(resolve, 100, 'still writing')),
  ]);
  t.equal(outcome, 'still writing');
  t.equal(store.names('sessions/').length, 1, 'and is announced');
  gate.resolve();
  t.equal(await given, 'abandoned');
  await writing;
  t.same(store.names('sessions/'), []);
});

void t.test('a session whose commit has failed is ended in order', async (t) => {
  const store = new ObjectStore();
  const client = store.client();
  await initTestRepository(client, packSizeBytes);
  const id = newId();
  const volume = randomBytes(3 * testChunkBytes);
  const session = await beginAttempt(client, id);
  const content = await writeStream(volumeSource(volume), session, { chunkSizeBytes: testChunkBytes });
  const missing = { ...content, root: 'ab'.repeat(32) };
  await t.rejects(session.commit(testManifest(id, content, missing)), { code: 'CHUNK_MISSING' });
  await session.suspend();
  t.same(store.names('sessions/'), []);
  const next = await backUp(await Repository.open(client, testSecret), volume, { id, afterFence: true });
  t.equal(
    next.session.statistics.newChunks,
    3,
    'data, page and root of the definition, nothing of the volume',
  );
});

void t.test('to suspend a session that is committed changes nothing', async (t) => {
  const store = new ObjectStore();
  const repository = await initTestRepository(store.client(), packSizeBytes);
  const { manifest, session } = await backUp(repository, randomBytes(testChunkBytes));
  await session.suspend();
  t.same(store.names('manifests/'), [manifestName(manifest.id)]);
});

void t.test('a session that cannot be fenced stays, and says so', async (t) => {
  const store = new ObjectStore();
  await initTestRepository(store.client(), packSizeBytes);
  const id = newId();
  const session = await beginAttempt(store.client(), id);
  store.capacityBytes = 0;
  await t.rejects(session.suspend(), { code: 'STORAGE_FULL' });
  t.same(store.names('sessions/'), [sessionName(id)]);
  store.capacityBytes = Number.POSITIVE_INFINITY;
  const repository = await Repository.open(store.client(), testSecret);
  t.match(await collect(repository), { waitingFor: [] });
});
