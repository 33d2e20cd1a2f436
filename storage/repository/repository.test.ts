import { randomBytes } from 'node:crypto';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import { FileBackend } from '../backends/fileBackend.ts';
import { deleteBackup, listBackups, readManifest } from './backups.ts';
import { quarantine } from './condemned.ts';
import { attemptsMax } from './limits.ts';
import { attemptOf, manifestName, packName, sessionName } from './names.ts';
import { putObject } from './objects.ts';
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

void t.test('a backup is read as it was, by another process too, on files and on objects', async (t) => {
  const files = new FileBackend(t.testdir());
  const objects = new ObjectStore().client();
  for (const backend of [files, objects]) {
    const repository = await initTestRepository(backend);
    const volume = someVolume(11, 12_345);
    const { manifest } = await backUp(repository, volume);
    const other = await Repository.open(backend, testSecret);
    const read = await readManifest(other.context, manifest.id);
    t.same(read, manifest);
    t.ok((await readVolume(other, manifest)).equals(volume));
    t.same(
      (await listBackups(other.context)).map(({ id, problem }) => [id, problem]),
      [[manifest.id, null]],
    );
    t.ok((await verifyRepository(other.context, await other.index(), { data: true })).ok);
  }
});

void t.test(
  'what is equal is stored once: within a volume, between machines, and in the next backup',
  async (t) => {
    const { store, repository } = await testStage();
    const piece = randomBytes(testChunkBytes);
    const volume = Buffer.concat([piece, piece, piece, Buffer.alloc(3 * testChunkBytes)]);
    const first = await backUp(repository, volume);
    t.equal(
      first.session.statistics.newChunks,
      6,
      'of the volume and of the definition one chunk, a page and a root each',
    );
    const packs = store.names('packs/').length;
    const second = await backUp(await Repository.open(store.client(), testSecret), volume);
    t.equal(second.session.statistics.newChunks, 0);
    t.equal(store.names('packs/').length, packs);
    t.ok((await readVolume(repository, second.manifest)).equals(volume));
  },
);

void t.test(
  'an increment reads and stores what changed, zeros included, and shares all other pages',
  async (t) => {
    const { repository } = await testStage();
    const before = Buffer.concat([someVolume(7), Buffer.alloc(1100 * testChunkBytes), someVolume(2)]);
    const { manifest: parent } = await backUp(repository, before);
    const after = Buffer.from(before);
    randomBytes(10).copy(after, 1107 * testChunkBytes + 100);
    after.fill(0, 4 * testChunkBytes, 5 * testChunkBytes);
    const changes = [
      { offsetBytes: 4 * testChunkBytes, lengthBytes: testChunkBytes, zero: true },
      { offsetBytes: 1107 * testChunkBytes + 100, lengthBytes: 10, zero: false },
    ];
    const { manifest, session } = await backUp(repository, after, { parent, changes });
    t.ok((await readVolume(repository, manifest)).equals(after));
    t.equal(session.statistics.newChunks, 4, 'one chunk, two pages, a root');
    t.ok((await readVolume(repository, parent)).equals(before), 'the parent is what it was');

    await deleteBackup(repository.context, parent.id, testTime);
    t.ok((await readVolume(repository, manifest)).equals(after), 'and is not needed');
    await t.rejects(
      backUp(repository, after.subarray(testChunkBytes), { parent, changes: [] }),
      { code: 'SESSION_STATE_INVALID' },
      'a volume of another size is no increment',
    );
  },
);

void t.test('nobody opens it without a key, and nothing of it is readable', async (t) => {
  const { store, repository } = await testStage();
  const secretText = 'a text that nobody may find';
  await backUp(repository, Buffer.from(secretText.repeat(5000)));
  await t.rejects(Repository.open(store.client(), { kind: 'keyFile', key: randomBytes(32) }), {
    code: 'KEY_WRONG',
    hint: /recovery key/,
  });
  for (const [name, { bytes }] of store.objects) {
    t.notOk(bytes.includes('nobody may find'), name);
    t.notOk(bytes.includes('/images/vm.qcow2'), name);
  }
  await t.rejects(Repository.open(new ObjectStore().client(), testSecret), { code: 'REPOSITORY_NOT_FOUND' });
  await t.rejects(initTestRepository(store.client()), { code: 'REPOSITORY_EXISTS' });
});

void t.test('keys are added, removed and rotated; what was stored stays readable', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(3);
  const { manifest } = await backUp(repository, volume);
  const other = { kind: 'recovery', key: randomBytes(32) } as const;
  const id = await repository.slots.add(other, { label: 'printed', createdAt: testTime });
  t.ok((await readVolume(await Repository.open(store.client(), other), manifest)).equals(volume));
  await repository.slots.remove(id);
  await t.rejects(Repository.open(store.client(), other), { code: 'KEY_WRONG' });
  await t.rejects(repository.slots.remove(id), { code: 'KEY_SLOT_NOT_FOUND' });
  const [last] = await repository.slots.list();
  await t.rejects(repository.slots.remove(last?.slotId ?? ''), { code: 'KEY_SLOT_LAST' });

  const rotated = await repository.rotate([{ secret: other, label: 'new' }], { createdAt: testTime });
  await t.rejects(Repository.open(store.client(), testSecret), { code: 'KEY_WRONG' });
  const reopened = await Repository.open(store.client(), other);
  t.equal(reopened.config.keyGeneration, 2);
  t.ok((await readVolume(reopened, manifest)).equals(volume));
  const next = await backUp(rotated, volume);
  t.equal(next.session.statistics.newChunks, 0, 'chunks are shared over a rotation');
  const { manifest: newer } = await backUp(reopened, someVolume(2));
  await t.rejects(
    readVolume(repository, newer),
    { code: 'REPOSITORY_TOO_NEW' },
    'old keys do not read new packs',
  );
});

void t.test('a rotation that ends at any call leaves a repository that opens and writes', async (t) => {
  for (let call = 1; ; call++) {
    const { store, repository } = await testStage();
    const volume = someVolume(2);
    const { manifest } = await backUp(repository, volume);
    const other = { kind: 'recovery', key: randomBytes(32) } as const;
    await repository.slots.add(other, { label: 'other', createdAt: testTime });
    const counting = store.client();
    await Repository.open(counting, testSecret);
    const client = store.client({ crashAtCall: counting.calls + call, crashAfterEffect: call % 2 === 0 });
    const dying = await Repository.open(client, testSecret);
    const outcome = await dying
      .rotate([{ secret: testSecret, label: 'again' }], { createdAt: testTime })
      .then(
        () => 'done',
        () => 'crashed',
      );
    for (let round = 0; round < 2; round++) {
      const after = await Repository.open(store.client(), testSecret);
      t.ok((await readVolume(after, manifest)).equals(volume), `crash at call ${call}`);
      const { manifest: newer } = await backUp(after, someVolume(1));
      // Nothing may be written with keys of a rotation that did not happen: whoever opens in another way has them not.
      if (after.config.keyGeneration === 1)
        t.ok(
          await readVolume(await Repository.open(store.client(), other), newer),
          `crash at call ${call}, other key`,
        );
      const next = await after.rotate([{ secret: testSecret, label: 'once more' }], { createdAt: testTime });
      t.ok(await readVolume(next, newer));
    }
    if (outcome === 'done') break;
  }
});

void t.test('losing every index loses nothing, and a rebuild makes them again', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(9);
  const { manifest } = await backUp(repository, volume);
  const [index = ''] = store.names('indexes/');
  store.damage(index, 777);
  let reopened = await Repository.open(store.client(), testSecret);
  t.ok((await readVolume(reopened, manifest)).equals(volume), 'a damaged index');

  for (const name of store.names('indexes/')) store.objects.delete(name);
  reopened = await Repository.open(store.client(), testSecret);
  t.ok((await readVolume(reopened, manifest)).equals(volume), 'none at all');
  const before = store.names();
  const dry = await rebuildIndex(reopened.context, { dryRun: true });
  t.same(store.names(), before, 'a dry run changes nothing');
  const report = await rebuildIndex(reopened.context, { dryRun: false });
  t.same(report, dry);
  t.equal(report.packsAdded, store.names('packs/').length);
  const again = await Repository.open(store.client(), testSecret);
  t.equal((await again.index()).packs.length, report.packsAdded);
  t.equal((await rebuildIndex(again.context, { dryRun: false })).packsAdded, 0);
});

void t.test(
  'a damaged pack is named with the backups it touches, and the next backup heals what it can',
  async (t) => {
    const { store, repository } = await testStage();
    const volume = someVolume(7);
    const { manifest } = await backUp(repository, volume);
    const healthy = await backUp(repository, someVolume(2));
    const [place] = [
      ...(await repository.index()).find(await (await repository.openStream(volumeOf(manifest))).chunkId(0)),
    ];
    if (place === undefined) throw new Error('no chunk');
    const pack = (await repository.index()).pack(place.pack);
    store.damage(packName(pack.id), (place.entry.offsetBytes + 10) * 8);

    const fresh = async () => Repository.open(store.client(), testSecret);
    await t.rejects(readVolume(await fresh(), manifest), { code: 'REPOSITORY_DAMAGED' });
    t.ok((await verify(await fresh(), false)).ok, 'a quick look does not read data');
    const report = await verify(await fresh(), true);
    t.notOk(report.ok);
    t.same(
      report.backups.map(({ id, problems }) => [id === healthy.manifest.id, problems]),
      [
        [false, ['volume vda: 1 chunks are missing or damaged']],
        [true, []],
      ],
    );
    t.same(
      report.damagedPacks.map(({ id }) => id),
      [pack.id],
    );

    await quarantine(repository.context, pack.id, { reason: 'verify', at: testTime });
    const healed = await backUp(await fresh(), volume);
    t.ok(healed.session.statistics.newChunks >= 3, 'what stood in that pack is stored again');
    t.ok(
      (await readVolume(await fresh(), manifest)).equals(volume),
      'and the old backup reads it from there',
    );
    t.ok((await verify(await fresh(), true)).ok);
  },
);

void t.test('a pack that is gone makes every reader and verify fail, never zeros', async (t) => {
  const { store, repository } = await testStage();
  const { manifest } = await backUp(repository, someVolume(7));
  for (const name of store.names('packs/')) store.objects.delete(name);
  const reopened = await Repository.open(store.client(), testSecret);
  await t.rejects(readVolume(reopened, manifest), { code: 'REPOSITORY_DAMAGED' });
  t.notOk((await verify(reopened, false)).ok);
  for (const name of store.names('indexes/')) store.objects.delete(name);
  await t.rejects(readVolume(await Repository.open(store.client(), testSecret), manifest), {
    code: 'CHUNK_MISSING',
  });
});

void t.test('a backup stores again what is gone, though an index names it', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(7);
  await backUp(repository, volume);
  for (const pack of store.names('packs/')) store.objects.delete(pack);
  const { manifest } = await backUp(repository, volume);
  t.ok((await readVolume(await Repository.open(store.client(), testSecret), manifest)).equals(volume));
});

void t.test('a backup of which something is gone before its commit is not committed', async (t) => {
  const { store, repository } = await testStage();
  const volume = someVolume(7);
  const beforeCommit = async () => {
    for (const pack of store.names('packs/')) store.objects.delete(pack);
  };
  await t.rejects(backUp(repository, volume, { beforeCommit }), { code: 'REPOSITORY_DAMAGED' });
  t.same(await listBackups(repository.context), []);
});

void t.test('a session that was fenced or whose backup was deleted can never commit', async (t) => {
  const { store, repository } = await testStage();
  const { context } = repository;
  const id = newId();
  await t.rejects(
    backUp(repository, someVolume(1), {
      id,
      beforeCommit: async () =>
        void (await putObject(context, 'fence', manifestName(id), json({ backupId: id }))),
    }),
    { code: 'BACKUP_FENCED', hint: /stillpoint backup/ },
  );
  t.same(await listBackups(context), []);

  const gone = newId();
  await t.rejects(
    backUp(repository, someVolume(1), {
      id: gone,
      beforeCommit: async () => deleteBackup(context, gone, testTime),
    }),
    { code: 'BACKUP_FENCED' },
    'deleted while it was written',
  );

  const { manifest } = await backUp(repository, someVolume(1));
  const record = store.objects.get(manifestName(manifest.id));
  await deleteBackup(context, manifest.id, testTime);
  t.same(await listBackups(context), []);
  if (record !== undefined) store.objects.set(manifestName(manifest.id), record);
  t.same(await listBackups(context), [], 'a manifest that comes back late revives nothing');
  t.equal(await readManifest(context, manifest.id), null);
  await t.rejects(backUp(repository, someVolume(1), { id: manifest.id }), { code: 'BACKUP_FENCED' });
});

void t.test('a session that is given up can never commit, whoever goes on with it', async (t) => {
  const { store, repository } = await testStage();
  const id = newId();
  const begin = async () => repository.begin({ backupId: id, startedAt: testTime });
  const twin = await begin();
  t.equal(await (await begin()).abandon(), 'abandoned');
  t.same(store.names('sessions/'), []);
  const { manifest } = await backUp(repository, someVolume(1));
  await t.rejects(twin.commit({ ...manifest, id }), { code: 'BACKUP_FENCED' });
  await t.rejects(begin(), { code: 'BACKUP_FENCED' }, 'and none begins again');
});

void t.test(
  'a manifest that cannot be read hides no other backup, and counts under its own name only',
  async (t) => {
    const { store, repository } = await testStage();
    const good = await backUp(repository, someVolume(1));
    const bad = await backUp(repository, someVolume(1));
    const copy = store.objects.get(manifestName(good.manifest.id));
    store.damage(manifestName(bad.manifest.id), 1234);
    const moved = newId();
    if (copy !== undefined) store.objects.set(manifestName(moved), copy);
    const listed = await listBackups(repository.context);
    t.same(
      new Map(listed.map(({ id, problem }) => [id, problem === null])),
      new Map([
        [good.manifest.id, true],
        [bad.manifest.id, false],
        [moved, false],
      ]),
    );
    t.notOk((await verify(repository, false)).ok);
  },
);

function json(content: object): Buffer {
  return Buffer.from(JSON.stringify({ formatVersion: 1, ...content }));
}

function volumeOf(manifest: Awaited<ReturnType<typeof backUp>>['manifest']) {
  const content = manifest.volumes[0]?.content;
  if (content === undefined) throw new Error('the backup has no volume');
  return content;
}

async function verify(repository: Repository, data: boolean) {
  return verifyRepository(repository.context, await repository.index(), { data });
}

void t.test('who still has all of a backup that was given up writes it behind its fences', async (t) => {
  const { store, repository } = await testStage();
  const id = newId();
  const volume = someVolume(3);
  for (let attempt = 1; attempt <= 2; attempt++) {
    const session = await repository.begin({ backupId: id, startedAt: testTime, afterFence: true });
    t.equal(session.attempt, attempt);
    await session.abandon();
  }
  await t.rejects(backUp(repository, volume, { id }), { code: 'BACKUP_FENCED' }, 'others do not');
  const { manifest } = await backUp(repository, volume, { id, afterFence: true });
  t.same(store.names('manifests/'), [`manifests/${id}`, `manifests/${id}.2`, `manifests/${id}.3`]);
  t.same(store.names('sessions/'), []);
  t.same(
    (await listBackups(repository.context)).map((backup) => backup.manifest?.id),
    [id],
  );
  t.same(await readManifest(repository.context, id), manifest);
  t.ok((await readVolume(repository, manifest)).equals(volume));
  const again = await backUp(repository, volume, { id, afterFence: true });
  t.same(again.manifest, manifest, 'and not twice');
  await deleteBackup(repository.context, id, testTime);
  t.same(store.names('manifests/'), []);
  await t.rejects(backUp(repository, volume, { id, afterFence: true }), { code: 'BACKUP_FENCED' });
});

void t.test('names of attempts are read as they are written, and no others', async (t) => {
  const id = newId();
  for (const attempt of [1, 2, 17, attemptsMax]) {
    t.same(attemptOf(manifestName(id, attempt), 'manifests/'), { backupId: id, attempt });
    t.same(attemptOf(sessionName(id, attempt), 'sessions/'), { backupId: id, attempt });
  }
  for (const text of ['.1', '.0', '.02', '.', '.10000', '.2.3', '-2'])
    t.equal(attemptOf(`manifests/${id}${text}`, 'manifests/'), null, text);
});
