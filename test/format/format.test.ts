import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { contentsOf } from '../../storage/repository/backupManifest.ts';
import { deleteBackup, listBackups } from '../../storage/repository/backups.ts';
import { newId } from '../../common/ids.ts';
import { collect } from '../../storage/repository/collectionFixture.ts';
import { parseKeyFile } from '../../storage/repository/keySlot.ts';
import { parseRecoveryKey } from '../../storage/repository/recoveryKey.ts';
import { Repository } from '../../storage/repository/repository.ts';
import {
  backUp,
  testSecret,
  initTestRepository,
  someVolume,
  testTime,
} from '../../storage/repository/repositoryFixture.ts';
import { verifyRepository } from '../../storage/repository/verifyRepository.ts';
import { IndependentReader, openSlot, packKey, packTable, unseal } from './independentReader.ts';

const golden = join(import.meta.dirname, '..', 'golden');
const repositories = ['repository-1'];

for (const name of repositories) {
  const store = join(golden, name, 'store');
  const expected = JSON.parse(readFileSync(join(golden, name, 'expected.json'), 'utf8'));

  void t.test(`${name} is read with each of its secrets`, async (t) => {
    const { passphrase, keyFile, recovery } = expected.secrets;
    const opened = [
      await Repository.open(new FileBackend(store), { kind: 'passphrase', passphrase }),
      await Repository.open(new FileBackend(store), { kind: 'keyFile', key: parseKeyFile(keyFile) }),
      await Repository.open(new FileBackend(store), { kind: 'recovery', key: parseRecoveryKey(recovery) }),
    ];
    for (const repository of opened)
      t.same(
        (await listBackups(repository.context)).map(({ id, problem }) => [id, problem]),
        expected.backups.map(({ id }: { id: string }) => [id, null]),
      );
    const [repository] = opened;
    if (repository === undefined) throw new Error('nothing was opened');
    const found = [];
    for (const { id, manifest } of await listBackups(repository.context)) {
      const streams: Record<string, string> = {};
      for (const { name: stream, content } of manifest === null ? [] : contentsOf(manifest))
        streams[stream.replace('volume ', '')] = sha256(
          await (await repository.openStream(content)).readAll(),
        );
      found.push({ id, streams });
    }
    t.same(found, expected.backups);
    t.ok((await verifyRepository(repository.context, await repository.index(), { data: true })).ok);
  });

  void t.test(`${name} is read by a program that knows only the specification`, async (t) => {
    const { passphrase, keyFile, recovery } = expected.secrets;
    t.same(digests(new IndependentReader(store, { passphrase })), byId(expected.backups));
    for (const secret of [{ keyFile }, { recovery }]) t.ok(new IndependentReader(store, secret));
    t.throws(() => new IndependentReader(store, { passphrase: 'another' }), /no slot opens/);
  });
}

void t.test('what this version writes is read by the other program, too', async (t) => {
  const root = t.testdir();
  const repository = await initTestRepository(new FileBackend(root));
  const volume = someVolume(6, 1234);
  const { manifest } = await backUp(repository, volume);
  const secret = { keyFile: testSecret.kind === 'keyFile' ? testSecret.key.toString('hex') : '' };
  t.same(digests(new IndependentReader(root, secret)), [
    { id: manifest.id, streams: { vda: sha256(volume), definition: sha256(Buffer.from('<domain/>')) } },
  ]);
});

void t.test('what a collection left is read by the other program, too', async (t) => {
  const root = t.testdir();
  const repository = await initTestRepository(new FileBackend(root));
  const volume = someVolume(6, 1234);
  const { manifest: gone } = await backUp(repository, Buffer.concat([volume, someVolume(2)]));
  const { manifest } = await backUp(repository, volume);
  await deleteBackup(repository.context, gone.id, testTime);
  const report = await collect(repository);
  t.ok(report.packsDeleted > 0 && report.packsRepacked > 0);
  const secret = { keyFile: testSecret.kind === 'keyFile' ? testSecret.key.toString('hex') : '' };
  t.same(digests(new IndependentReader(root, secret)), [
    { id: manifest.id, streams: { vda: sha256(volume), definition: sha256(Buffer.from('<domain/>')) } },
  ]);
});

void t.test('the test vectors hold for the other program', (t) => {
  const vectors = JSON.parse(readFileSync(join(golden, 'vectors.json'), 'utf8'));
  const bytes = (text: string) => Buffer.from(text, 'hex');
  const { key, bound, sealed, text } = vectors.seal;
  t.equal(unseal(bytes(key), bytes(bound), bytes(sealed)).toString('hex'), text);

  const slots = vectors.slots.map((slot: string) => JSON.parse(slot));
  const { passphrase, keyFile, recovery } = vectors.secrets;
  for (const [index, secret] of [{ passphrase }, { keyFile }, { recovery }].entries()) {
    const masters = openSlot(slots[index], secret);
    t.same(
      [...(masters ?? [])].map(([, master]) => master.toString('hex')),
      vectors.masters,
      `slot ${index}`,
    );
  }

  const repositoryId = bytes(vectors.repositoryId.replaceAll('-', ''));
  for (const name of ['pack', 'packSealedToPublicKey']) {
    const pack = bytes(vectors[name].bytes);
    const found = packTable(
      pack,
      packKey(pack, repositoryId, (generation) => bytes(vectors.masters[generation - 1])),
    );
    t.same(
      found.map((entry) => entry.toString('hex', 0, 32)),
      vectors.chunks.map(({ data }: { data: string }) => data),
      name,
    );
    t.equal(sha256(pack), vectors[name].id);
  }
  t.end();
});

function digests(reader: IndependentReader) {
  return reader.backups().map(({ id, streams }) => ({
    id,
    streams: Object.fromEntries([...streams].map(([name, content]) => [name, sha256(content)])),
  }));
}

function byId(backups: readonly { readonly id: string }[]) {
  return backups.toSorted((one, other) => (one.id < other.id ? -1 : 1));
}

function sha256(content: Buffer): string {
  return createHash('sha256').update(content).digest('hex');
}

void t.test('a later attempt is read by a program that knows only the specification', async (t) => {
  const root = t.testdir();
  const repository = await initTestRepository(new FileBackend(root));
  const id = newId();
  await (await repository.begin({ backupId: id, startedAt: testTime })).abandon();
  const volume = someVolume(3);
  await backUp(repository, volume, { id, afterFence: true });
  const [read, ...others] = new IndependentReader(root, { keyFile: '09'.repeat(32) }).backups();
  t.equal(read?.id, id);
  t.ok(read?.streams.get('vda')?.equals(volume));
  t.same(others, []);
});
