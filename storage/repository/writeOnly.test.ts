import { randomBytes } from 'node:crypto';
import t, { type Test } from 'tap';
import type { ObjectStore } from '../../test/sim/objectStore.ts';
import { deleteBackup, readBackup, readManifest } from './backups.ts';
import { collectGarbage } from './collection.ts';
import { packName } from './names.ts';
import { rebuildIndex } from './rebuild.ts';
import { repairRepository } from './repair.ts';
import { Repository } from './repository.ts';
import {
  backUp,
  readVolume,
  someVolume,
  testChunkBytes,
  testSecret,
  testStage,
  testTime,
} from './repositoryFixture.ts';
import { verifyBackup, verifyRepository } from './verifyRepository.ts';

const writerSecret = { kind: 'keyFile', key: Buffer.alloc(32, 5) } as const;

interface Stage {
  readonly store: ObjectStore;
  /** Of a host whose key reads. */
  readonly reader: Repository;
  /** Of one whose key does not. */
  readonly writer: Repository;
}

async function stageFor(): Promise<Stage> {
  const { store, repository } = await testStage();
  await repository.slots.add(writerSecret, { label: 'writer', createdAt: testTime, access: 'write' });
  return { store, reader: repository, writer: await Repository.open(store.client(), writerSecret) };
}

/** The repository as another process sees it that was begun now. */
async function anew({ store }: Stage, secret = testSecret): Promise<Repository> {
  return Repository.open(store.client(), secret);
}

async function isWhole(test: Test, repository: Repository): Promise<void> {
  const report = await verifyRepository(repository.context, await repository.index(), { data: true });
  test.match(report, { ok: true, damagedPacks: [] });
}

void t.test(
  'what a host has written that may only write, others read, and it shares chunks with them',
  async (t) => {
    const stage = await stageFor();
    const shared = someVolume(7);
    const { manifest: first } = await backUp(stage.reader, shared);
    const own = Buffer.concat([shared, randomBytes(3 * testChunkBytes)]);
    const { manifest, session } = await backUp(await anew(stage, writerSecret), own);
    t.equal(session.statistics.newChunks, 3 + 2, 'its own chunks, a page and a root');
    const reader = await anew(stage);
    t.ok((await readVolume(reader, manifest)).equals(own));
    t.ok((await readVolume(reader, first)).equals(shared));
    t.equal((await backUp(reader, own)).session.statistics.newChunks, 0, 'and they with it');
    await isWhole(t, reader);
  },
);

void t.test('it makes increments, and sees what is there, without a chunk of data', async (t) => {
  const stage = await stageFor();
  const volume = someVolume(9);
  const { manifest: parent } = await backUp(stage.writer, volume);
  const next = Buffer.from(volume);
  randomBytes(100).copy(next, 5 * testChunkBytes);
  const changes = [{ offsetBytes: 5 * testChunkBytes, lengthBytes: 100, zero: false }];
  const { manifest, session } = await backUp(stage.writer, next, { parent, changes });
  t.equal(session.statistics.newChunks, 1 + 2);
  t.ok((await readVolume(await anew(stage), manifest)).equals(next));
  const writer = await anew(stage, writerSecret);
  t.same(await readManifest(writer.context, manifest.id), manifest);
  const report = await verifyRepository(writer.context, await writer.index(), { data: false });
  t.match(report, { ok: true, backups: { length: 2 } });
  await deleteBackup(writer.context, parent.id, testTime);
  t.equal(await readBackup((await anew(stage)).context, parent.id), null);
});

void t.test('it reads no data, and whatever needs that is refused and changes nothing', async (t) => {
  const stage = await stageFor();
  const { manifest: others } = await backUp(stage.reader, someVolume(5));
  const { manifest: own } = await backUp(stage.writer, someVolume(5));
  const writer = await anew(stage, writerSecret);
  const { context } = writer;
  const before = stage.store.names('').map((name) => [name, stage.store.bytesOf(name).toString('hex')]);
  const refused = { code: 'KEY_WRITE_ONLY' };
  for (const [whose, manifest] of Object.entries({ others, own })) {
    await t.rejects(readVolume(writer, manifest), refused, `${whose} volume`);
    await t.rejects(verifyBackup(writer, manifest.id, { data: true }), refused, `${whose} backup`);
  }
  const index = await writer.index();
  await t.rejects(verifyRepository(context, index, { data: true }), refused);
  const at = testTime;
  const { packSizeBytes } = writer.config;
  for (const apply of [false, true])
    await t.rejects(
      repairRepository(writer, { data: false, apply, at, packSizeBytes, isAlone: false }),
      refused,
    );
  const onOpenSession = (): Promise<'leave'> => Promise.resolve('leave');
  const collector = { host: 'writer', at };
  await t.rejects(collectGarbage(writer, { collector, repackBelow: 0.5, onOpenSession }), refused);
  await t.rejects(rebuildIndex(context, { dryRun: false }), refused);
  await t.rejects(writer.rotate([{ secret: writerSecret, label: 'x' }], { createdAt: at }), refused);
  const other = { kind: 'recovery', key: randomBytes(32) } as const;
  await t.rejects(writer.slots.add(other, { label: 'x', createdAt: at }), refused);
  const after = stage.store.names('').map((name) => [name, stage.store.bytesOf(name).toString('hex')]);
  t.same(after, before);
});

void t.test('of its keys none opens a pack of data', async (t) => {
  const { reader, writer } = await stageFor();
  const { keys } = writer.context;
  t.throws(() => keys.key(1, 'data'), { code: 'KEY_WRITE_ONLY' });
  t.throws(() => keys.sharedSecret(1, randomBytes(32)), { code: 'KEY_WRITE_ONLY' });
  const given = keys.encode();
  const secrets = reader.context.keys;
  t.notOk(given.includes(secrets.key(1, 'data')));
  t.notOk(given.includes(secrets.encode().subarray(-32)), 'nor the master key, of which it is made');
  t.ok(given.includes(secrets.key(1, 'tree')), 'as a look that would find them shows');
});

void t.test('packs that no index names keep no such host from its work', async (t) => {
  const stage = await stageFor();
  await backUp(stage.writer, someVolume(5));
  for (const name of stage.store.names('indexes/')) stage.store.objects.delete(name);
  const volume = someVolume(5);
  const writer = await anew(stage, writerSecret);
  const { manifest } = await backUp(writer, volume);
  const report = await verifyRepository(writer.context, await writer.index(), { data: false });
  t.match(
    report.backups.map(({ problems }) => problems),
    [[/or in packs that no index names/], []],
    'it says what it does not know',
  );
  const reader = await anew(stage);
  t.ok((await readVolume(reader, manifest)).equals(volume));
  await isWhole(t, reader);
});

void t.test(
  'what it shares with others and goes meanwhile ends its backup, and is in the next one',
  async (t) => {
    const stage = await stageFor();
    const volume = someVolume(5);
    await backUp(stage.reader, volume);
    const { packs } = await (await anew(stage)).index();
    const writer = await anew(stage, writerSecret);
    const beforeCommit = async (): Promise<void> => {
      for (const { id, kind } of packs) if (kind === 'data') stage.store.objects.delete(packName(id));
    };
    const next = Buffer.concat([volume, randomBytes(testChunkBytes)]);
    const lost = backUp(writer, next, { beforeCommit });
    await t.rejects(lost, { code: 'CHUNK_MISSING', retryable: true, message: /may not read/ });
    const { manifest } = await backUp(await anew(stage, writerSecret), next);
    t.ok((await readVolume(await anew(stage), manifest)).equals(next));
  },
);

void t.test('a rotation shuts it out, or lets it go on', async (t) => {
  const stage = await stageFor();
  const { manifest: first } = await backUp(stage.writer, someVolume(3));
  const rotated = await stage.reader.rotate([{ secret: testSecret, label: 'reader' }], {
    createdAt: testTime,
  });
  await t.rejects(anew(stage, writerSecret), { code: 'KEY_WRONG' });
  const slot = { label: 'writer', createdAt: testTime, access: 'write' } as const;
  await rotated.slots.add(writerSecret, slot);
  const writer = await anew(stage, writerSecret);
  t.equal(writer.context.keys.newestGeneration, 2);
  const volume = someVolume(3);
  const { manifest } = await backUp(writer, volume);
  const reader = await anew(stage);
  t.ok((await readVolume(reader, manifest)).equals(volume));
  t.ok(await readVolume(reader, first));
  await t.rejects(readVolume(writer, manifest), { code: 'KEY_WRITE_ONLY' });
});

void t.test('the last key slot that reads is never removed for one that writes', async (t) => {
  const { reader } = await stageFor();
  const slots = await reader.slots.list();
  const idOf = (access: 'write' | undefined): string =>
    slots.find(({ slot }) => slot?.access === access)?.slotId ?? '';
  await t.rejects(reader.slots.remove(idOf(undefined)), { code: 'KEY_SLOT_LAST' });
  await reader.slots.remove(idOf('write'));
  t.equal((await reader.slots.list()).length, 1);
});

void t.test('who has a slot of each kind reads', async (t) => {
  const stage = await stageFor();
  await stage.reader.slots.add(writerSecret, { label: 'reads, too', createdAt: testTime });
  for (let round = 0; round < 8; round++) {
    // Slots are tried in the order of their random ids.
    await stage.reader.slots.add(writerSecret, { label: 'writes', createdAt: testTime, access: 'write' });
    t.notOk((await anew(stage, writerSecret)).context.keys.isWriter);
  }
});
