import { createHash } from 'node:crypto';
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { contentsOf } from '../../storage/repository/backupManifest.ts';
import { deleteBackup, listBackups } from '../../storage/repository/backups.ts';
import { newId } from '../../common/ids.ts';
import { collect } from '../../storage/repository/collectionFixture.ts';
import { currentCollection } from '../../storage/repository/collectionRecords.ts';
import { flipped } from '../../storage/repository/fixture.ts';
import { listHosts } from '../../storage/repository/hostRecords.ts';
import { parseKeyFile } from '../../storage/repository/keySlot.ts';
import { listProtections } from '../../storage/repository/protections.ts';
import { listReadings } from '../../storage/repository/readingRecords.ts';
import { parseRecoveryKey } from '../../storage/repository/recoveryKey.ts';
import { Repository } from '../../storage/repository/repository.ts';
import {
  backUp,
  testSecret,
  initTestRepository,
  someVolume,
  testTime,
} from '../../storage/repository/repositoryFixture.ts';
import { listVerifications } from '../../storage/repository/verificationRecords.ts';
import { verifyRepository } from '../../storage/repository/verifyRepository.ts';
import { makeRepository2 } from './goldenRepository2.ts';
import { goldenKeyFile } from './goldenSecrets.ts';
import { openSlot } from './independentKeys.ts';
import { unseal } from './independentNotation.ts';
import { packKey, packTable } from './independentPacks.ts';
import { IndependentReader } from './independentReader.ts';

const golden = join(import.meta.dirname, '..', 'golden');
const repositories = ['repository-1', 'repository-2'];

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
    const spoken = recovery.toLowerCase().replaceAll('-', ' ').replaceAll('0', 'o').replaceAll('1', 'l');
    for (const secret of [{ keyFile }, { recovery }, { recovery: spoken }])
      t.ok(new IndependentReader(store, secret));
    t.throws(() => new IndependentReader(store, { recovery: `${recovery.slice(0, -1)}0` }), /the last group/);
    // The last bits of its 52 characters stand for nothing, and are zero.
    t.throws(
      () => new IndependentReader(store, { recovery: recovery.replace(/0(?=-....$)/, '1') }),
      /the padding/,
    );
    t.throws(() => new IndependentReader(store, { passphrase: 'another' }), /no slot opens/);
  });

  void t.test(`a bit that is turned in ${name} is noticed by the other program`, (t) => {
    const { passphrase, keyFile, recovery } = expected.secrets;
    const ofSlots: Record<string, IndependentReader> = {
      passphrase: new IndependentReader(store, { passphrase }),
      recovery: new IndependentReader(store, { recovery }),
    };
    const reader = new IndependentReader(store, { keyFile });
    const damaged = expected.damaged ?? [];
    t.same([...reader.problems().keys()], damaged);
    const missed: string[] = [];
    for (const object of objectsIn(store)) {
      if (damaged.includes(object) || object.startsWith('damaged/')) continue;
      const bytes = readFileSync(join(store, object));
      const { kind = '' } = object.startsWith('keys/') ? JSON.parse(bytes.toString()) : {};
      for (const bit of someBits(object, bytes)) {
        const turned = flipped(bytes, bit);
        const problem = (ofSlots[kind] ?? reader).problemOf(nameFor(object, turned), turned);
        if (problem === null) missed.push(`bit ${bit} of ${object}`);
      }
    }
    t.same(missed, []);
    t.end();
  });

  void t.test(`an object of ${name} under the name of another is noticed by the other program`, (t) => {
    const reader = new IndependentReader(store, { keyFile: expected.secrets.keyFile });
    const objects = objectsIn(store).filter((object) => !/^(config|damaged)/.test(object));
    for (const object of objects) {
      const bytes = readFileSync(join(store, object));
      const folder = object.slice(0, object.indexOf('/'));
      const others = objects.filter((other) => other !== object && other.startsWith(`${folder}/`));
      t.same(
        others.filter((other) => reader.problemOf(other, bytes) === null),
        [],
        object,
      );
    }
    t.end();
  });
}

void t.test('what is said beside the backups is what both programs say', async (t) => {
  const { store, keyFile, expected } = secondRepository();
  const { protections, readings, verifications, hosts } = expected;
  const secret = { kind: 'keyFile', key: parseKeyFile(keyFile) } as const;
  const { context } = await Repository.open(new FileBackend(store), secret);
  // Of a record that is damaged the program tells why.
  const reasons = [...(await listProtections(context))].map(([id, { reason }]) => [
    id,
    reason?.startsWith('protections/') === true ? 'damaged' : reason,
  ]);
  t.same(Object.fromEntries(reasons), protections);
  t.same(Object.fromEntries(await listReadings(context)), readings);
  const expectedHere = Object.entries<object>(verifications).map(([id, one]) => [
    id,
    { ...one, picture: null },
  ]);
  t.same([...(await listVerifications(context))], expectedHere);
  t.same(
    (await listHosts(context)).map(({ id, files, problem }) => ({ id, files, problem })),
    hosts.map((host: object) => ({ ...host, problem: null })),
  );
  t.same(await currentCollection(context), expected.collection.number);

  const reader = new IndependentReader(store, { keyFile });
  t.same(Object.fromEntries(reader.protections()), protections);
  t.match(Object.fromEntries(reader.newest('readings')), readings);
  t.match(Object.fromEntries(reader.newest('verifications')), verifications);
  t.match(
    [...reader.documents('hosts')].map(([name, { files }]) => ({ id: name.slice('hosts/'.length), files })),
    hosts,
  );
  t.same(reader.collection(), expected.collection);
});

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
  const secret = { keyFile: testSecret.kind === 'keyFile' ? testSecret.key.toString('hex') : '' };
  const before = new IndependentReader(root, secret);
  const report = await collect(repository);
  t.ok(report.packsDeleted > 0 && report.packsRepacked > 0);
  const expected = [
    { id: manifest.id, streams: { vda: sha256(volume), definition: sha256(Buffer.from('<domain/>')) } },
  ];
  t.same(digests(new IndependentReader(root, secret)), expected);
  t.same(digests(before), expected, 'by who had read the indexes before as well');
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
      found.map((entry) => entry.id),
      vectors.chunks.map(({ data }: { data: string }) => data),
      name,
    );
    t.equal(sha256(pack), vectors[name].id);
  }
  t.end();
});

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

void t.test('each thing that stands out in the second repository is what it is said to be', (t) => {
  const { store, keyFile, named } = secondRepository();
  const reader = new IndependentReader(store, { keyFile });
  t.same([...reader.replaced], named('an index that another one replaces'));
  for (const name of named('a pack that is sealed to the public key'))
    t.equal(readFileSync(join(store, name))[11], 1);
  for (const what of [
    'a pack that no index names',
    'a pack that is sealed to the public key',
    'the manifest of the attempt after it',
  ]) {
    const copy = t.testdir();
    cpSync(store, copy, { recursive: true });
    for (const name of named(what)) rmSync(join(copy, name));
    const read = () => new IndependentReader(copy, { keyFile }).backups().length;
    if (what.includes('manifest')) t.equal(read(), reader.backups().length - 1, what);
    else t.throws(read, /it is in no pack|ENOENT/, what);
  }
  t.end();
});

void t.test('the other program takes the copy of a configuration that it can prove', (t) => {
  const { store, keyFile } = secondRepository();
  const copy = t.testdir();
  cpSync(store, copy, { recursive: true });
  const open = () => new IndependentReader(copy, { keyFile });
  t.equal(open().config.revision, 2);
  rmSync(join(copy, 'config/00000002.2'));
  t.equal(open().config.packSizeBytes, 16 * 1024, 'a third copy');
  writeFileSync(join(copy, 'config/00000002.2'), 'no JSON\n\n');
  t.equal(open().config.packSizeBytes, 16 * 1024, 'behind one that cannot be parsed');
  rmSync(join(copy, 'config/00000002.3'));
  t.throws(open, /no slot opens/, 'one that is wrong proves nothing');
  rmSync(join(copy, 'config/00000002'));
  t.throws(open, /JSON|lines/);
  t.end();
});

void t.test('a damaged manifest hides no other, and counts as a fence before another attempt', (t) => {
  const { store, keyFile, expected, named } = secondRepository();
  const copy = t.testdir();
  cpSync(store, copy, { recursive: true });
  const damage = (name: string) =>
    writeFileSync(join(copy, name), flipped(readFileSync(join(copy, name)), 801));
  const read = () => new IndependentReader(copy, { keyFile }).backups().map(({ id }) => id);
  const all = expected.backups.map(({ id }: { id: string }) => id);
  for (const fence of named('a fence')) damage(fence);
  t.same(read(), all);
  damage(`manifests/${all[0]}`);
  t.same(read(), all.slice(1));
  t.end();
});

void t.test(
  'an index of another version is damaged if it is authentic without, and an error otherwise',
  (t) => {
    const { store, keyFile, expected } = secondRepository();
    const copy = t.testdir();
    cpSync(store, copy, { recursive: true });
    for (const name of objectsIn(copy).filter((object) => object.startsWith('indexes/'))) {
      const bytes = flipped(readFileSync(join(copy, name)), 9 * 8 + 1);
      writeFileSync(join(copy, nameFor(name, bytes)), bytes);
      rmSync(join(copy, name));
    }
    t.same(digests(new IndependentReader(copy, { keyFile })), expected.backups, 'packs tell what is in them');
    const [name = ''] = objectsIn(copy).filter((object) => object.startsWith('indexes/'));
    const bytes = flipped(readFileSync(join(copy, name)), 400);
    writeFileSync(join(copy, nameFor(name, bytes)), bytes);
    t.throws(() => new IndependentReader(copy, { keyFile }), /version 3/);
    t.end();
  },
);

void t.test('what a second repository is made of now is read by both programs', async (t) => {
  const root = t.testdir();
  const { repository, more } = await makeRepository2(root);
  const reader = new IndependentReader(root, { keyFile: goldenKeyFile.toString('hex') });
  const found = [];
  for (const { id, manifest } of await listBackups(repository.context)) {
    const streams: Record<string, string> = {};
    for (const { name, content } of manifest === null ? [] : contentsOf(manifest))
      streams[name.replace('volume ', '')] = sha256(await (await repository.openStream(content)).readAll());
    found.push({ id, streams });
  }
  t.same(digests(reader), byId(found));
  t.same([...reader.problems().keys()], more.damaged);
});

void t.test('the other program uses nothing of this one', (t) => {
  const files = readdirSync(import.meta.dirname).filter((file) => /^independent[A-Z]\w+\.ts$/.test(file));
  t.ok(files.length > 1);
  for (const file of files) {
    const text = readFileSync(join(import.meta.dirname, file), 'utf8');
    t.notMatch(text, /\b(import|require)\(/);
    const imported = [...text.matchAll(/(?:^import .*| from )'(.+)';$/gm)].map(([, name = '']) => name);
    t.ok(imported.length > 0, file);
    t.same(
      imported.filter((name) => !/^(node:|\.\/independent[A-Z]\w+\.ts$)/.test(name)),
      [],
      file,
    );
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

/** The names of all objects of a store. */
function objectsIn(store: string): readonly string[] {
  return readdirSync(store, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(store.length + 1))
    .toSorted();
}

/** The name that bytes ask for: where it is a hash that must not be all that notices a change. */
function nameFor(object: string, bytes: Buffer): string {
  if (!/^(packs|indexes)/.test(object)) return object;
  const hash = sha256(bytes);
  return object.startsWith('indexes/') ? `indexes/${hash}` : `packs/${hash.slice(0, 2)}/${hash}`;
}

/** One bit of each of the first bytes, and some of what follows; none of what nothing proves. */
function someBits(object: string, bytes: Buffer): readonly number[] {
  const head = Array.from({ length: Math.min(bytes.length, 128) }, (_, byte) => byte * 8 + (byte % 8));
  const rest = Array.from({ length: 16 }, (_, part) => Math.floor(((part + 0.5) * bytes.length * 8) / 16));
  // Labels and times of key slots.
  const [from, to] = object.startsWith('keys/')
    ? [bytes.indexOf('"label"'), bytes.indexOf('"salt"')]
    : [0, 0];
  return [...head, ...rest].filter((bit) => bit >> 3 < from || bit >> 3 >= to);
}

function secondRepository() {
  const expected = JSON.parse(readFileSync(join(golden, 'repository-2', 'expected.json'), 'utf8'));
  const objects = Object.entries(expected.objects);
  return {
    expected,
    store: join(golden, 'repository-2', 'store'),
    keyFile: expected.secrets.keyFile,
    /** The objects of which it is said that they are this. */
    named: (what: string) => objects.filter(([, said]) => said === what).map(([name]) => name),
  };
}
