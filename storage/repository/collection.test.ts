import { randomBytes } from 'node:crypto';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import { FileBackend } from '../backends/fileBackend.ts';
import { deleteBackup, listBackups } from './backups.ts';
import { readIndex } from './chunkIndex.ts';
import { collect, namedAndGone, remainsIn } from './collectionFixture.ts';
import { quarantine } from './condemned.ts';
import { encodeIndex } from './indexObject.ts';
import { indexIdOf, manifestName, packIdOf, sessionName } from './names.ts';
import { putIndex } from './objects.ts';
import { rebuildIndex } from './rebuild.ts';
import { Repository } from './repository.ts';
import {
  backUp,
  initTestRepository,
  readVolume,
  someVolume,
  testChunkBytes,
  testSecret,
  testStage,
  testTime,
} from './repositoryFixture.ts';
import { verifyRepository } from './verifyRepository.ts';

void t.test('what a deleted backup alone needed goes, and what others need stays', async (t) => {
  const { store, repository } = await testStage();
  const { context } = repository;
  const shared = someVolume(8);
  const { manifest: first } = await backUp(repository, Buffer.concat([shared, someVolume(8)]));
  const { manifest: second } = await backUp(repository, Buffer.concat([shared, someVolume(4)]));
  const usedBytes = store.usedBytes;
  const nothing = await collect(repository);
  t.match(nothing, { collection: 1, packsDeleted: 0, packsRepacked: 0, freedBytes: 0 });

  const volume = await readVolume(repository, second);
  await deleteBackup(context, first.id, testTime);
  const report = await collect(repository);
  t.match(report, { collection: 2, waitingFor: [], fencedBackups: [] });
  t.ok(report.freedBytes >= 6 * testChunkBytes);
  t.ok(usedBytes - store.usedBytes > 5 * testChunkBytes, 'space comes back');
  t.same(await remainsIn(store), []);
  const after = await Repository.open(store.client(), testSecret);
  t.ok((await readVolume(after, second)).equals(volume));
  t.ok((await verifyRepository(after.context, await after.index(), { data: true })).ok);

  await deleteBackup(context, second.id, testTime);
  await collect(repository);
  t.same(store.names('packs/'), []);
  t.same(store.names('indexes/'), []);
});

void t.test('on files, too', async (t) => {
  const root = t.testdir();
  const repository = await initTestRepository(new FileBackend(root));
  const { manifest: first } = await backUp(repository, someVolume(8));
  const volume = someVolume(5);
  const { manifest: second } = await backUp(repository, volume);
  await deleteBackup(repository.context, first.id, testTime);
  t.ok((await collect(repository)).packsDeleted > 0);
  t.ok((await readVolume(await Repository.open(new FileBackend(root), testSecret), second)).equals(volume));
});

void t.test('packs with enough that is needed stay as they are', async (t) => {
  const { store, repository } = await testStage();
  const piece = someVolume(3);
  await backUp(repository, piece);
  const { manifest } = await backUp(repository, Buffer.concat([piece, randomBytes(testChunkBytes)]));
  const packs = store.names('packs/');
  for (const { id } of await listBackups(repository.context))
    if (id !== manifest.id) await deleteBackup(repository.context, id, testTime);
  t.match(await collect(repository, { repackBelow: 0 }), { packsRepacked: 0, packsDeleted: 0 });
  t.same(store.names('packs/'), packs);
  t.ok((await collect(repository, { repackBelow: 1 })).packsRepacked > 0, 'the tree of the deleted one');
  t.same(await remainsIn(store), []);
});

void t.test('an open session is waited for, and what it refers to stays', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(7);
  const { manifest: old } = await backUp(repository, volume);
  await deleteBackup(repository.context, old.id, testTime);
  const asked: string[] = [];
  const { manifest } = await backUp(await Repository.open(store.client(), testSecret), volume, {
    beforeCommit: async (session) => {
      const left = await collect(repository, {
        onOpenSession: async ({ backupId, announcement }) => {
          asked.push(backupId);
          t.equal(announcement?.startedAt, testTime);
          return 'leave';
        },
      });
      t.same(asked, [session.backupId]);
      t.match(left, { waitingFor: [{ backupId: session.backupId }], packsDeleted: 0 });
      t.equal(session.statistics.newChunks, 0, 'all of it is in packs that are condemned now');
    },
  });
  t.match(await collect(repository), { collection: 1, packsDeleted: 0, fencedBackups: [] });
  t.ok((await readVolume(await Repository.open(store.client(), testSecret), manifest)).equals(volume));
});

void t.test('a session that begins after the mark stores again what is condemned', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(7);
  const { manifest: old } = await backUp(repository, volume);
  await deleteBackup(repository.context, old.id, testTime);
  const condemned = store.names('packs/');
  const bystander = await repository.begin({ backupId: newId(), startedAt: testTime });
  await collect(repository, { onOpenSession: () => Promise.resolve('leave') });
  const { manifest } = await backUp(await Repository.open(store.client(), testSecret), volume);
  await bystander.abandon();
  t.match(await collect(repository), { collection: 1, packsDeleted: condemned.length });
  t.same(
    store.names('packs/').filter((name) => condemned.includes(name)),
    [],
  );
  t.ok((await readVolume(await Repository.open(store.client(), testSecret), manifest)).equals(volume));
});

void t.test('a session that is fenced fails, and harms nobody', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(7);
  const { manifest: old } = await backUp(repository, volume);
  const id = newId();
  const beforeCommit = async () => {
    t.match(
      await collect(repository),
      { fencedBackups: [] },
      'without anything to condemn nobody is waited for',
    );
    await deleteBackup(repository.context, old.id, testTime);
    t.match(await collect(repository), { fencedBackups: [id] });
    t.equal(store.objects.has(sessionName(id)), false);
  };
  const writer = await Repository.open(store.client(), testSecret);
  await t.rejects(backUp(writer, volume, { id, beforeCommit }), { code: 'BACKUP_FENCED' });
  t.same(await listBackups(repository.context), []);
  const { manifest } = await backUp(repository, volume);
  t.ok((await readVolume(await Repository.open(store.client(), testSecret), manifest)).equals(volume));
});

void t.test('nothing is deleted while anything of a backup cannot be read', async (t) => {
  const { store, repository } = await testStage();
  const { manifest: gone } = await backUp(repository, someVolume(8));
  const { manifest: kept } = await backUp(repository, someVolume(8));
  await deleteBackup(repository.context, gone.id, testTime);
  const whole = new Map(store.objects);
  const packs = store.names('packs/').length;

  store.damage(manifestName(kept.id), 999);
  await t.rejects(collect(repository), { code: 'REPOSITORY_DAMAGED' }, 'a manifest');
  t.equal(store.names('packs/').length, packs);

  for (const name of store.names('packs/')) {
    store.objects.clear();
    for (const [other, object] of whole) store.objects.set(other, object);
    store.objects.delete(name);
    const outcome = await collect(await Repository.open(store.client(), testSecret)).catch(
      (error: unknown) => error,
    );
    if (outcome instanceof Error) {
      t.match(outcome, { code: /CHUNK_MISSING|REPOSITORY_DAMAGED/, hint: /stillpoint/ });
      t.equal(store.names('packs/').length, packs - 1);
    } else t.ok(await readVolume(repository, kept), 'what was gone was not needed');
  }
  // A damaged backup that nobody wants holds up nothing.
  store.objects.clear();
  for (const [other, object] of whole) store.objects.set(other, object);
  store.damage(manifestName(kept.id), 999);
  await deleteBackup(repository.context, kept.id, testTime);
  await collect(repository);
  t.same(store.names('packs/'), []);
});

void t.test('a store that may show old listings is collected on the word of the operator only', async (t) => {
  const { repository } = await testStage();
  const capabilities = { createExclusive: true, consistentListing: false };
  Object.assign(repository.config, { capabilities });
  await t.rejects(collect(repository), { code: 'COLLECTION_UNSAFE' });
  t.match(await collect(repository, { isAlone: true }), { collection: 1 });
});

void t.test('what is in quarantine stays while it is the only place, and goes once healed', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(3);
  const { manifest } = await backUp(repository, volume);
  const names = store.names('packs/');
  for (const name of names) {
    const id = packIdOf(name);
    if (id !== null) await quarantine(repository.context, id, { reason: 'test', at: testTime });
  }
  t.match(await collect(repository), { packsDeleted: 0 });
  await backUp(await Repository.open(store.client(), testSecret), volume);
  t.match(await collect(repository), { packsDeleted: names.length });
  t.same(await remainsIn(store), []);
  t.ok((await readVolume(await Repository.open(store.client(), testSecret), manifest)).equals(volume));
});

void t.test('index objects that are damaged, twice there, or name what is gone are put right', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(8);
  const { manifest } = await backUp(repository, volume);
  const [index = ''] = store.names('indexes/');
  const object = store.objects.get(index);
  store.objects.delete(index);
  await rebuildIndex(repository.context, { dryRun: false });
  if (object !== undefined) store.objects.set(index, object);
  const { manifest: gone } = await backUp(repository, someVolume(2));
  const [, , last = ''] = store.names('indexes/');
  await deleteBackup(repository.context, gone.id, testTime);
  store.damage(last, 500);
  await collect(repository);
  t.same(await remainsIn(store), []);
  t.ok((await readVolume(await Repository.open(store.client(), testSecret), manifest)).equals(volume));
});

void t.test('a damaged index object that another one replaces goes, and before that one', async (t) => {
  const { store, repository } = await testStage();
  const { context } = repository;
  await backUp(repository, someVolume(8));
  const [index = ''] = store.names('indexes/');
  store.damage(index, 500);
  await rebuildIndex(context, { dryRun: false });
  t.ok(store.names('indexes/').includes(index), 'a rebuild deletes nothing');
  const [other = ''] = store.names('indexes/').filter((name) => name !== index);
  const id = indexIdOf(other);
  const object = id === null ? null : await readIndex(context, id, {});
  if (id === null || object === null) throw new Error('there is no index');
  await putIndex(context, encodeIndex({ supersedes: [id], packs: object.packs }));
  const deleted: string[] = [];
  const remove = context.backend.delete.bind(context.backend);
  context.backend.delete = async (name, call) => {
    if (name.startsWith('indexes/')) deleted.push(name);
    await remove(name, call);
  };
  await collect(repository);
  t.same(deleted, [index, other], 'a crash in between leaves nothing that is told of as damage');
  t.same(await remainsIn(store), []);
});

void t.test('in a store that is full, a collection makes room', async (t) => {
  const { store, repository } = await testStage();
  const kept = someVolume(8);
  const { manifest } = await backUp(repository, kept);
  const { manifest: gone } = await backUp(
    repository,
    Buffer.concat([kept.subarray(0, 70_000), someVolume(8)]),
  );
  // Room for a few small objects, not for a pack and not for an index.
  store.capacityBytes = store.usedBytes + 1500;
  await t.rejects(backUp(repository, someVolume(4)), { code: 'STORAGE_FULL' });
  await deleteBackup(repository.context, gone.id, testTime);
  const report = await collect(repository);
  t.ok(report.freedBytes > 5 * testChunkBytes);
  t.same(await namedAndGone(store), []);
  await collect(repository);
  t.same(await remainsIn(store), [], 'and the next one has room for the rest');
  t.ok((await readVolume(await Repository.open(store.client(), testSecret), manifest)).equals(kept));
  t.ok(await backUp(repository, someVolume(4)));
});

void t.test('a restore goes on while its packs are repacked, again and again', async (t) => {
  const store = new ObjectStore();
  const writer = await initTestRepository(store.client(), 1024 * 1024);
  const pieces = Array.from({ length: 12 }, () => randomBytes(testChunkBytes));
  const { manifest } = await backUp(writer, Buffer.concat(pieces));
  // Others with every chunk, so that the packs can be thinned out one after the other.
  const others = [];
  for (let round = 0; round < 4; round++)
    others.push((await backUp(writer, Buffer.concat([...pieces, randomBytes(testChunkBytes)]))).manifest);
  const reading = await Repository.open(store.client(), testSecret);
  const content = manifest.volumes[0]?.content;
  if (content === undefined) throw new Error('no volume');
  const stream = await reading.openStream(content);
  for (const [number, piece] of pieces.entries()) {
    const target = Buffer.alloc(testChunkBytes);
    await stream.readInto(target, number * testChunkBytes);
    t.ok(target.equals(piece), `chunk ${number}`);
    const other = number % 3 === 0 ? others.pop() : undefined;
    if (other !== undefined) {
      await deleteBackup(writer.context, other.id, testTime);
      await moveEverything(store);
    }
  }
  const report = await verifyRepository(reading.context, await reading.index(), { data: true });
  t.ok(report.ok, 'and an old index makes no check find damage');
  t.same(report.damagedPacks, []);
});

/** Has a collection copy every pack: what is needed of each is less than all of it plus something. */
async function moveEverything(store: ObjectStore): Promise<void> {
  await collect(await Repository.open(store.client(), testSecret), { repackBelow: 1.1 });
}
