import { hash } from 'node:crypto';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { deleteBackup, listBackups, readManifest } from './backups.ts';
import { collect, unreadable } from './collectionFixture.ts';
import { flipped } from './fixture.ts';
import { putRecord } from './collectionRecords.ts';
import { damagedName, manifestName, numberedName, packName, prefixes, recordName } from './names.ts';
import { attemptAfterFences } from './openSessions.ts';
import { listProtections, readProtection, writeProtection } from './protections.ts';
import { touchedOf } from './repair.ts';
import { verifyBackup, verifyRepository } from './verifyRepository.ts';
import { planManifests } from './repairManifests.ts';
import { damagedRepository, dataPacksOf, repair } from './repairFixture.ts';
import { copyChunks } from './repack.ts';
import { Repository } from './repository.ts';
import { backUp, readVolume, someVolume, testSecret, testStage, testTime } from './repositoryFixture.ts';

void t.test('a dry run says what would be done, and does nothing', async (t) => {
  const { store } = await damagedRepository();
  const before = [...store.objects].map(([name, { bytes }]) => [name, bytes]);
  const dry = await repair(await Repository.open(store.client(), testSecret), { apply: false });
  t.same(
    [...store.objects].map(([name, { bytes }]) => [name, bytes]),
    before,
  );
  t.equal(dry.applied, false);
  const done = await repair(await Repository.open(store.client(), testSecret));
  t.same(done.steps, dry.steps, 'what is done is what was said');
  t.same([...new Set(dry.steps.map(({ action }) => action))].toSorted(), [
    'copy',
    'index',
    'quarantine',
    'salvage',
    'set-aside',
  ]);
});

void t.test('after a repair everything that is whole can be read, and collections go on', async (t) => {
  const { store, kept, unreadableId, damaged } = await damagedRepository();
  const open = async () => Repository.open(store.client(), testSecret);
  await t.rejects(collect(await open()), { code: 'REPOSITORY_DAMAGED' }, 'not before it');
  const { touched } = await repair(await open());
  t.same(touched, []);
  for (const [name, bytes] of damaged) {
    t.notOk(store.objects.has(name), name);
    t.ok(store.bytesOf(damagedName(name, 1)).equals(bytes), `${name} is kept as it was found`);
  }
  t.same(
    (await listBackups((await open()).context)).map(({ id }) => id),
    kept.map(({ manifest }) => manifest.id),
  );
  t.notOk(store.objects.has(manifestName(unreadableId)));
  await collect(await open());
  t.same(store.names(prefixes.quarantine), [], 'what was salvaged lets the damaged pack go');
  t.same(await unreadable(store, kept), []);
  t.same((await repair(await open())).steps, [], 'a second one has nothing to do');
});

void t.test(
  'a damaged pack keeps its place, and names the backups and what the next one heals',
  async (t) => {
    const { store, repository } = await testStage();
    const shared = someVolume(3);
    const old = (await backUp(repository, Buffer.concat([shared, someVolume(2)]))).manifest;
    const newest = (await backUp(repository, shared)).manifest;
    const [pack = ''] = await dataPacksOf(repository);
    store.damage(pack, 128 * 8 + 5);
    const open = async () => Repository.open(store.client(), testSecret);
    const { touched, steps } = await repair(await open());
    t.match(
      steps.map(({ action, name }) => ({ action, name })),
      [
        { action: 'quarantine', name: pack },
        { action: 'salvage', name: pack },
      ],
    );
    t.ok(store.objects.has(pack));
    t.match(touched, [
      { id: old.id, machine: 'vm', lostChunks: 1, healableChunks: 1 },
      { id: newest.id, machine: 'vm', lostChunks: 1, healableChunks: 1 },
    ]);
    t.same((await repair(await open())).steps, []);
    await backUp(await open(), shared);
    t.same((await repair(await open())).touched, [], 'and so it is');
    t.ok((await readVolume(await open(), newest)).equals(shared));
  },
);

void t.test('only what the newest backup of a machine needs can be healed by the next', (t) => {
  const machine = { name: 'vm', uuid: 'u' };
  const problems = ['vda: chunks'];
  const one = { id: '1', machine, problems, lostChunks: ['a', 'b'] };
  const two = { id: '2', machine, problems, lostChunks: ['b'] };
  t.match(touchedOf([one, two]), [{ healableChunks: 1 }, { healableChunks: 1 }]);
  const whole = { id: '3', machine, problems: [], lostChunks: [] };
  t.match(touchedOf([one, two, whole]), [{ healableChunks: 0 }, { healableChunks: 0 }]);
  t.end();
});

void t.test('what a newer version has written is no damage', async (t) => {
  const { store, repository } = await testStage();
  const { manifest } = await backUp(repository, someVolume(2));
  const name = manifestName(manifest.id);
  const later = Buffer.from(store.bytesOf(name));
  later.writeUInt16BE(2, 8);
  // What it seals is bound to its version, too.
  later.fill(7, 40);
  store.objects.delete(name);
  await store.client().create(name, [later]);
  const { steps, touched } = await repair(await Repository.open(store.client(), testSecret));
  t.same(steps, []);
  t.match(touched, [{ id: manifest.id, problems: [/has version 2, or is damaged/] }], 'but it is told');
  t.ok(store.objects.has(name));
  await t.rejects(collect(repository), { code: 'REPOSITORY_TOO_NEW' }, 'nothing is deleted');
});

void t.test(
  'a bit that was turned in the version or generation of a manifest is damage, which a repair cures',
  async (t) => {
    const [version, generation] = [8 * 8, 12 * 8];
    const bits = [
      ...Array.from({ length: 16 }, (_, bit) => version + bit),
      ...Array.from({ length: 32 }, (_, bit) => generation + bit),
    ];
    for (const bit of bits) {
      const { store, repository } = await testStage();
      const { manifest } = await backUp(repository, someVolume(1));
      const name = manifestName(manifest.id);
      store.objects.set(name, { bytes: flipped(store.bytesOf(name), bit), createdAtCall: 0, number: 0 });
      await t.rejects(collect(repository), { code: 'REPOSITORY_DAMAGED' }, `bit ${bit}`);
      t.match(await repair(repository), { steps: [{ action: 'set-aside', name }] });
      await collect(repository);
    }
  },
);

void t.test('damage on the way is no damage', async (t) => {
  const { store, repository } = await testStage();
  await backUp(repository, someVolume(1));
  const names = store.names();
  for (let seed = 1; seed <= 40; seed++) {
    const client = store.client({ flippedRead: 0.02 }, seed);
    const opened = await Repository.open(client, testSecret).catch(() => null);
    if (opened !== null) await repair(opened, { data: false }).catch(() => null);
    const lost = names.filter((name) => !store.objects.has(name) && !name.startsWith(prefixes.indexes));
    t.same(lost, [], `seed ${seed}`);
  }
});

void t.test('a backup that is protected is not set aside, and says what stands in the way', async (t) => {
  const { store, repository } = await testStage();
  const { manifest } = await backUp(repository, someVolume(2));
  await writeProtection(repository.context, manifest.id, { reason: null });
  store.damage(manifestName(manifest.id), 700);
  const { steps, kept } = await repair(repository);
  t.same(steps, []);
  t.match(kept, [{ name: manifestName(manifest.id), reason: /--off/ }]);
  t.ok(store.objects.has(manifestName(manifest.id)));
});

void t.test('a record of a protection that is damaged protects, and hides no other', async (t) => {
  const { store, repository } = await testStage();
  const { manifest } = await backUp(repository, someVolume(1));
  await writeProtection(repository.context, manifest.id, { reason: 'x' });
  await writeProtection(repository.context, manifest.id, null);
  store.damage(recordName('protections', manifest.id, 2), 600);
  t.match(await readProtection(repository.context, manifest.id), { reason: /damaged/ });
  t.equal((await listProtections(repository.context)).size, 1);
  await writeProtection(repository.context, manifest.id, null);
  t.equal(await readProtection(repository.context, manifest.id), null);
});

void t.test(
  'a record of a protection of other keys, or of a later version, protects, and hides no backup',
  async (t) => {
    const { store, repository } = await testStage();
    const { manifest } = await backUp(repository, someVolume(1));
    await writeProtection(repository.context, manifest.id, { reason: 'x' });
    const name = recordName('protections', manifest.id, 1);
    const sound = store.bytesOf(name);
    for (const [field, at] of [
      ['version', 9],
      ['generation', 15],
    ] as const)
      for (const isSealed of [true, false]) {
        const later = Buffer.from(sound);
        later.writeUInt8(later.readUInt8(at) + 1, at);
        // What it seals is bound to both.
        if (isSealed) later.fill(7, 40);
        store.objects.delete(name);
        await store.client().create(name, [later]);
        t.match(
          [...(await listProtections(repository.context)).keys()],
          [manifest.id],
          `${field} ${isSealed}`,
        );
      }
  },
);

void t.test('a record of a protection that got lost hides none behind it', async (t) => {
  const { store, repository } = await testStage();
  const { manifest } = await backUp(repository, someVolume(1));
  for (const reason of ['x', 'y', 'z']) await writeProtection(repository.context, manifest.id, { reason });
  store.objects.delete(recordName('protections', manifest.id, 1));
  store.objects.delete(recordName('protections', manifest.id, 2));
  t.same(await readProtection(repository.context, manifest.id), { reason: 'z' });
  t.same([...(await listProtections(repository.context)).values()], [{ reason: 'z' }]);
  await writeProtection(repository.context, manifest.id, null);
  t.equal(await readProtection(repository.context, manifest.id), null);
  t.equal((await listProtections(repository.context)).size, 0);
});

void t.test('a verdict that is damaged goes on the word that nobody follows it, and only then', async (t) => {
  const { store, repository } = await testStage();
  const { manifest } = await backUp(repository, someVolume(4));
  await deleteBackup(repository.context, manifest.id, testTime);
  const record = { collection: 1, packs: [], host: 'test', at: testTime };
  await putRecord(repository.context, 'mark', record);
  await putRecord(repository.context, 'verdict', record);
  const name = numberedName('verdicts', 1);
  store.damage(name, 600);
  await t.rejects(collect(repository), { code: 'REPOSITORY_DAMAGED' });
  const { steps, kept } = await repair(repository);
  t.same(steps, []);
  t.match(kept, [{ name, reason: /--alone/ }]);
  t.match(await repair(repository, { isAlone: true }), { steps: [{ action: 'set-aside', name }] });
  t.match(await collect(repository), { collection: 1 });
});

/** A backup whose first attempt is a fence and whose second one has the manifest. */
async function secondAttempt(repository: Repository, id: string) {
  await (await repository.begin({ backupId: id, startedAt: testTime, afterFence: true })).abandon();
  const volume = someVolume(2);
  const { manifest } = await backUp(repository, volume, { id, afterFence: true });
  return { manifest, volume };
}

void t.test('a damaged fence in front of a whole attempt counts as the fence that it was', async (t) => {
  const { store, repository } = await testStage();
  const id = newId();
  const { manifest, volume } = await secondAttempt(repository, id);
  store.damage(manifestName(id), 700);
  const { steps, kept, touched } = await repair(await Repository.open(store.client(), testSecret));
  t.same({ steps, kept, touched }, { steps: [], kept: [], touched: [] });
  t.same(store.names(prefixes.deletions), []);
  t.same(store.names(prefixes.manifests), [manifestName(id), manifestName(id, 2)], 'its name stays taken');
  const { context } = repository;
  t.match(await listBackups(context), [{ id, problem: null }], 'once');
  t.same(await readManifest(context, id), manifest);
  t.equal(await attemptAfterFences(context, id), 2);
  await collect(repository);
  t.ok((await readVolume(repository, manifest)).equals(volume));
});

void t.test(
  'a fence that is lost hides no attempt behind it, is told, and made again by a repair',
  async (t) => {
    for (const last of [2, 3]) {
      const { store, repository } = await testStage();
      const { context } = repository;
      const id = newId();
      for (let attempt = 2; attempt < last; attempt++)
        await (await repository.begin({ backupId: id, startedAt: testTime, afterFence: true })).abandon();
      const { manifest, volume } = await secondAttempt(repository, id);
      const lost = manifestName(id);
      store.objects.delete(lost);
      t.same(await readManifest(context, id), manifest, `attempt ${last} is found`);
      t.equal(await attemptAfterFences(context, id), last);
      const told = [{ id, problems: [new RegExp(`^${lost} is gone`)] }];
      t.match(await verifyRepository(context, await repository.index(), { data: false }), {
        ok: false,
        backups: told,
      });
      const vault = await Repository.open(store.client(), testSecret, { storage: 'vault' });
      t.match(await verifyBackup(vault, id, { data: false }), [
        { file: lost, kind: 'manifest', verdict: 'missing', detail: /storage check vault --repair/ },
        { verdict: 'ok' },
        { verdict: 'ok' },
      ]);
      t.match(await repair(repository, { apply: false }), {
        steps: [{ action: 'fence', name: lost }],
        touched: told,
      });
      const { steps, touched } = await repair(await Repository.open(store.client(), testSecret));
      t.match({ steps, touched }, { steps: [{ action: 'fence', name: lost }], touched: [] });
      t.ok(store.objects.has(lost));
      t.same((await repair(repository)).steps, [], 'once');
      await t.rejects(
        backUp(repository, volume, { id }),
        { code: 'BACKUP_FENCED' },
        'nobody takes its place',
      );
      t.ok((await readVolume(repository, manifest)).equals(volume));
    }
  },
);

void t.test('the lost fences of a backup that was deleted are missed by nobody', async (t) => {
  const { store, repository } = await testStage();
  const id = newId();
  await secondAttempt(repository, id);
  store.objects.delete(manifestName(id));
  await deleteBackup(repository.context, id, testTime);
  t.equal(await readManifest(repository.context, id), null);
  t.same((await repair(repository)).steps, []);
});

void t.test('a damaged fence counts as one as soon as the next attempt is announced', async (t) => {
  const { store, repository } = await testStage();
  const id = newId();
  await (await repository.begin({ backupId: id, startedAt: testTime })).abandon();
  const session = await repository.begin({ backupId: id, startedAt: testTime, afterFence: true });
  store.damage(manifestName(id), 700);
  const { steps, kept } = await repair(repository);
  t.same({ steps, kept }, { steps: [], kept: [] });
  await session.abandon();
  t.same(await listBackups(repository.context), []);
});

void t.test('of a backup whose last attempt is damaged every damaged attempt is kept aside', async (t) => {
  for (const isFenceDamaged of [false, true]) {
    const { store, repository } = await testStage();
    const id = newId();
    await secondAttempt(repository, id);
    const names = [...(isFenceDamaged ? [manifestName(id)] : []), manifestName(id, 2)];
    for (const name of names) store.damage(name, 700);
    const bytes = names.map((name) => store.bytesOf(name));
    const { context } = repository;
    t.match(await listBackups(context), [{ id, problem: /damaged/ }], 'listed once');
    await t.rejects(collect(repository), { code: 'REPOSITORY_DAMAGED' });
    t.match(await repair(repository), { steps: [{ name: manifestName(id, 2) }], kept: [] });
    t.same(
      names.map((name) => store.bytesOf(damagedName(name, 1))),
      bytes,
    );
    t.same(store.names(prefixes.damaged).length, names.length, 'and nothing that was whole');
    t.same(store.names(prefixes.manifests), []);
    await collect(repository);
  }
});

void t.test(
  'a later attempt that is damaged stops collections no more, also without its fence',
  async (t) => {
    const { store, repository } = await testStage();
    const id = newId();
    await secondAttempt(repository, id);
    store.objects.delete(manifestName(id));
    store.damage(manifestName(id, 2), 700);
    await t.rejects(collect(repository), { code: 'REPOSITORY_DAMAGED' });
    t.match(await repair(repository), { steps: [{ name: manifestName(id, 2) }] });
    t.same(store.names(prefixes.manifests), []);
    await collect(repository);
  },
);

void t.test('names under damaged/ tell copies of one object from copies of another', (t) => {
  const id = newId();
  const names = [1, 2].flatMap((attempt) =>
    [1, 2].map((number) => damagedName(manifestName(id, attempt), number)),
  );
  t.equal(new Set(names).size, 4);
  t.end();
});

void t.test('what has changed since a repair has looked is judged anew', async (t) => {
  const { store, repository } = await testStage();
  const { context } = repository;
  const ids: string[] = [];
  for (let backup = 0; backup < 2; backup++) ids.push((await backUp(repository, someVolume(1))).manifest.id);
  const [first = '', second = ''] = ids;
  const whole = store.objects.get(manifestName(second));
  for (const id of ids) store.damage(manifestName(id), 700);
  const options = { data: false, apply: true, at: testTime, packSizeBytes: 1024, isAlone: false };
  const { steps } = await planManifests(context, options);
  t.equal(steps.length, 2);
  await writeProtection(context, first, { reason: null });
  if (whole !== undefined) store.objects.set(manifestName(second), whole);
  for (const { act } of steps) t.equal(await act(), false);
  t.same(store.names(prefixes.deletions), []);
  t.same(store.names(prefixes.damaged), []);
});

/** The lowest bits of the version and of the generation in the header of a pack. */
const tooNewBits = [9 * 8 + 1, 15 * 8 + 1];

void t.test('a turned bit in the version or generation of a pack stops no repair', async (t) => {
  for (const bit of tooNewBits) {
    const { store, repository } = await testStage();
    const { manifest } = await backUp(repository, someVolume(3));
    const [pack = ''] = await dataPacksOf(repository);
    store.damage(pack, bit);
    const { steps, touched } = await repair(await Repository.open(store.client(), testSecret));
    t.match(
      steps.map(({ action, name }) => ({ action, name })),
      [{ action: 'quarantine', name: pack }],
    );
    t.match(touched, [{ id: manifest.id, lostChunks: 4 }]);
  }
});

void t.test('the same in a pack that no index names hides no other', async (t) => {
  for (const bit of tooNewBits) {
    const { store, repository } = await testStage();
    const volume = someVolume(3);
    const { manifest } = await backUp(repository, volume);
    const [pack = ''] = await dataPacksOf(repository);
    // The same chunks once more, in a pack that is not known.
    const index = await repository.index();
    const places = [...index.placesOf(index.packs.findIndex(({ id }) => packName(id) === pack))];
    const before = store.names(prefixes.packs);
    await copyChunks(repository.context, index, places, { packSizeBytes: 1024 * 1024 });
    const copy = store.names(prefixes.packs).find((name) => !before.includes(name)) ?? '';
    for (const name of store.names(prefixes.indexes)) store.objects.delete(name);
    store.damage(copy, bit);
    const open = async () => Repository.open(store.client(), testSecret);
    t.ok((await readVolume(await open(), manifest)).equals(volume));
    t.match(await repair(await open()), {
      touched: [],
      steps: [{ action: 'index' }, { action: 'quarantine' }],
    });
    await collect(await open());
    t.ok((await readVolume(await open(), manifest)).equals(volume));
  }
});

void t.test('a pack of a newer version is no damage', async (t) => {
  const { store, repository } = await testStage();
  await backUp(repository, someVolume(1));
  const bytes = Buffer.from(store.bytesOf((await dataPacksOf(repository))[0] ?? ''));
  bytes.writeUInt16BE(2, 8);
  const later = packName(hash('sha256', bytes, 'buffer'));
  await store.client().create(later, [bytes]);
  await t.rejects(repair(repository), { code: 'REPOSITORY_TOO_NEW' });
  t.same(store.names(prefixes.quarantine), []);
});

void t.test('a pack that was damaged on its way once is not quarantined', async (t) => {
  const { store, repository } = await testStage();
  await backUp(repository, someVolume(2));
  const [pack = ''] = await dataPacksOf(repository);
  const client = store.client();
  const read = client.read.bind(client);
  let flips = 0;
  client.read = async (name, options) => {
    const bytes = await read(name, options);
    if (name === pack && bytes !== null && flips++ === 0) bytes[500] = (bytes[500] ?? 0) ^ 1;
    return bytes;
  };
  t.same((await repair(await Repository.open(client, testSecret))).steps, []);
  t.not(flips, 0);
  t.same(store.names(prefixes.quarantine), []);
});

void t.test('a chunk is salvaged unless another place of it can really be read', async (t) => {
  for (const isOtherDamaged of [true, false]) {
    const { store, repository } = await testStage();
    const volume = someVolume(1);
    const { manifest } = await backUp(repository, volume);
    const [pack = ''] = await dataPacksOf(repository);
    const index = await repository.index();
    const places = [...index.placesOf(index.packs.findIndex(({ id }) => packName(id) === pack))];
    await copyChunks(repository.context, index, places, { packSizeBytes: 1024 * 1024 });
    const other = (await dataPacksOf(repository)).find((name) => name !== pack) ?? '';
    store.truncate(pack, 16);
    if (isOtherDamaged) store.damage(other, 140 * 8);
    // Without a look at the data nobody knows of the damage in the other one.
    const { steps } = await repair(await Repository.open(store.client(), testSecret), { data: false });
    const expected = isOtherDamaged ? ['quarantine', 'salvage'] : ['quarantine'];
    t.same(
      steps.filter(({ name }) => name === pack).map(({ action }) => action),
      expected,
    );
    t.ok((await readVolume(await Repository.open(store.client(), testSecret), manifest)).equals(volume));
  }
});
