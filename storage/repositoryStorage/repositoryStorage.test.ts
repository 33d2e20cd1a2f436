import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { newId } from '../../common/ids.ts';
import type { Extent } from '../../common/volumeSource.ts';
import { FileBackend } from '../backends/fileBackend.ts';
import type { Manifest } from '../manifest.ts';
import type { BackupEntry, BackupWriter } from '../storage.ts';
import { initTestRepository, testSecret, volumeSource } from '../repository/repositoryFixture.ts';
import { Repository } from '../repository/repository.ts';
import { RepositoryStorage } from './repositoryStorage.ts';

const machine = { name: 'web 1', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' };
const owner = { uid: 0, gid: 0, mode: 0o600 };

interface Place {
  readonly directory: string;
  readonly storage: RepositoryStorage;
  /** The same repository, as another process sees it. */
  readonly other: () => RepositoryStorage;
}

async function placeFor(test: Test): Promise<Place> {
  const directory = test.testdir();
  const root = join(directory, 'vault');
  await mkdir(root);
  await initTestRepository(new FileBackend(root));
  const open = (): RepositoryStorage =>
    new RepositoryStorage({
      name: 'vault',
      location: root,
      open: () => Repository.open(new FileBackend(root), testSecret),
      freeBytes: () => Promise.resolve(1),
    });
  return { directory, storage: open(), other: open };
}

const whole = (volume: Buffer): readonly Extent[] => [
  { offsetBytes: 0, lengthBytes: volume.length, zero: false },
];

/** Half of it is zeros. */
function someVolume(): Buffer {
  return Buffer.concat([randomBytes(700_416), Buffer.alloc(1_048_576), randomBytes(348_160)]);
}

interface Stored {
  readonly entry: BackupEntry;
  readonly memory: Buffer;
}

async function store(
  place: Place,
  volume: Buffer,
  options: {
    readonly parent?: string;
    readonly changes?: readonly Extent[];
    readonly time?: string;
    /** Where the commit is made, when not by the writer itself. */
    readonly committer?: (
      writer: BackupWriter,
      request: { jobId: string; backupId: string },
    ) => Promise<BackupWriter>;
  } = {},
): Promise<Stored> {
  const request = { jobId: newId(), backupId: newId(), machine };
  const writer = await place.storage.begin(request);
  const memory = randomBytes(200_001);
  const files = { memory: join(place.directory, 'memory'), xml: join(place.directory, 'xml') };
  await writeFile(files.memory, memory);
  await writeFile(files.xml, '<domain/>');
  const source = volumeSource(volume);
  const parent = { backupId: options.parent ?? '', target: 'vda' };
  const stored =
    options.parent === undefined
      ? await writer.addVolume(source, 'v')
      : await writer.addIncrement(source, { parent, changes: options.changes ?? whole(volume) }, 'v');
  const state = await writer.addByCopy(files.memory, 'm');
  const definition = await writer.addByCopy(files.xml, 'd');
  await writer.flush();
  const manifest: Manifest = {
    formatVersion: 1,
    id: request.backupId,
    writer: 'test',
    machine,
    host: { name: 'h', libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime: options.time ?? '2026-11-22T10:00:00.000Z',
    mode: 'live',
    modeReason: 'asked for',
    consistency: 'memory',
    pauseMs: 1,
    volumes: [
      {
        target: 'vda',
        file: 'v',
        format: 'qcow2',
        virtualSizeBytes: volume.length,
        storedBytes: stored.sizeBytes,
        sha256: stored.sha256,
        source: '/images/web.qcow2',
        owner,
        read: options.parent === undefined ? 'full' : 'increment',
      },
    ],
    memory: { file: 'm', sizeBytes: state.sizeBytes, sha256: state.sha256, running: true },
    definition: { file: 'd', sha256: definition.sha256, autostart: true },
    extras: [
      {
        kind: 'nvram',
        file: 'n',
        sizeBytes: definition.sizeBytes,
        sha256: definition.sha256,
        source: '/nvram/web',
      },
      {
        kind: 'network',
        file: 'w',
        sizeBytes: definition.sizeBytes,
        sha256: definition.sha256,
        name: 'default',
      },
    ],
    steps: [],
    labels: { why: 'test' },
  };
  const committer = (await options.committer?.(writer, request)) ?? writer;
  return { entry: await committer.commit(manifest), memory };
}

async function copiedVolume(
  { directory }: Place,
  storage: RepositoryStorage,
  entry: BackupEntry,
): Promise<Buffer> {
  const volume = entry.manifest?.volumes[0];
  if (volume === undefined) throw new Error('it has no volume');
  const name = newId();
  const [to, raw] = [join(directory, `${name}.qcow2`), join(directory, `${name}.raw`)];
  const artifact = { path: 'v', sizeBytes: volume.storedBytes, sha256: volume.sha256 };
  await storage.copyOut(artifact, to, { as: 'volume' });
  await execa('qemu-img', ['check', '-q', to]);
  await execa('qemu-img', ['convert', '-O', 'raw', to, raw]);
  return readFile(raw);
}

void t.test('a backup comes out of a repository as it went in, also for another process', async (t) => {
  const place = await placeFor(t);
  const volume = someVolume();
  const { entry, memory } = await store(place, volume);
  const other = place.other();
  const found = await other.find('web 1@latest');
  t.same(found.manifest, entry.manifest);
  t.match(found, { id: entry.id, storage: 'vault', state: 'Active', protected: false, machine });
  t.match(found.manifest, {
    volumes: [{ storedBytes: 1_048_576, owner, source: '/images/web.qcow2' }],
    definition: { autostart: true },
    extras: [
      { kind: 'nvram', source: '/nvram/web', sizeBytes: 9 },
      { kind: 'network', name: 'default' },
    ],
    labels: { why: 'test' },
  });
  t.ok((await copiedVolume(place, other, found)).equals(volume));
  const state = found.manifest?.memory;
  const to = join(place.directory, 'state');
  const artifact = { path: 'm', sizeBytes: 0, sha256: state?.sha256 ?? '' };
  await other.copyOut(artifact, to, { as: 'file' });
  t.ok((await readFile(to)).equals(memory));
  t.equal(await other.readText({ path: 'd', sha256: found.manifest?.definition.sha256 ?? '' }), '<domain/>');
  t.match(await other.verify(found, { data: true }), {
    ok: true,
    files: [
      { file: 'volume vda' },
      { kind: 'memory' },
      { kind: 'definition' },
      { kind: 'nvram' },
      { kind: 'network' },
    ],
  });
});

void t.test('what another process has stored and not committed is committed by this one', async (t) => {
  const place = await placeFor(t);
  const volume = someVolume();
  const { entry } = await store(place, volume, {
    committer: (_writer, request) => place.other().begin({ ...request, machine }),
  });
  t.ok((await copiedVolume(place, place.other(), entry)).equals(volume));
  t.same(await place.storage.partials(), [], 'nothing is left of the session');
});

void t.test('an increment takes what has changed, zeros too, and the rest from its parent', async (t) => {
  const place = await placeFor(t);
  const before = someVolume();
  const { entry: parent } = await store(place, before);
  const after = Buffer.from(before);
  randomBytes(4096).copy(after, 100 * 4096);
  after.fill(0, 20 * 4096, 60 * 4096);
  // What is not named as changed is not read: it must come from the parent.
  const source = Buffer.from(after);
  source.fill(0xee, 1_900_544);
  const changes = [
    { offsetBytes: 20 * 4096, lengthBytes: 40 * 4096, zero: true },
    { offsetBytes: 100 * 4096, lengthBytes: 4096, zero: false },
  ];
  const { entry } = await store(place, source, {
    parent: parent.id ?? '',
    changes,
    time: '2026-11-22T11:00:00.000Z',
  });
  t.ok((await copiedVolume(place, place.storage, entry)).equals(after));
  t.ok((await copiedVolume(place, place.storage, parent)).equals(before), 'the parent is as it was');
  await place.storage.delete(parent);
  t.ok((await copiedVolume(place, place.other(), entry)).equals(after), 'and is not needed any more');
});

void t.test('an increment on what is not there, or is of another size, is refused as that', async (t) => {
  const place = await placeFor(t);
  const volume = someVolume();
  const { entry } = await store(place, volume);
  const larger = Buffer.concat([volume, Buffer.alloc(4096)]);
  const code = 'PARENT_UNUSABLE';
  await t.rejects(store(place, larger, { parent: entry.id ?? '' }), { code, message: /2097152 bytes/ });
  await place.storage.delete(entry);
  await t.rejects(store(place, volume, { parent: entry.id ?? '' }), { code, message: /not there any more/ });
});

void t.test(
  'a protected backup is not deleted, whatever the entry says, until that is taken off',
  async (t) => {
    const place = await placeFor(t);
    const { entry } = await store(place, someVolume());
    await place.storage.setProtected(entry, { reason: 'the audit' });
    t.match(await place.other().list(), [{ protected: true, protectedReason: 'the audit' }]);
    await t.rejects(place.other().delete({ ...entry, protected: false }), { code: 'BACKUP_PROTECTED' });
    await place.storage.setProtected(entry, null);
    await place.storage.setProtected(entry, { reason: null });
    t.match(await place.other().list(), [{ protected: true, protectedReason: null }]);
    await place.storage.setProtected(entry, null);
    await place.other().delete(entry);
    t.same(await place.storage.list(), []);
    await t.rejects(place.storage.setProtected(entry, null), { code: 'BACKUP_NOT_FOUND' });
  },
);

void t.test('the last verification of a backup is told with it', async (t) => {
  const place = await placeFor(t);
  const { entry } = await store(place, someVolume());
  const first = { at: '2026-11-22T10:00:00.000Z', ok: false, start: 'boot', evidence: null } as const;
  await place.storage.addVerification(entry, { ...first, detail: 'dead', durationMs: 1 }, null);
  const picture = join(place.directory, 'screen.png');
  await writeFile(picture, 'a picture');
  const second = { at: '2026-11-22T11:00:00.000Z', ok: true, start: 'resume', evidence: 'agent' } as const;
  await place.other().addVerification(entry, { ...second, detail: 'it answers', durationMs: 2 }, picture);
  t.match(await place.storage.list(), [{ id: entry.id, verified: { ...second, detail: 'it answers' } }]);
  await place.storage.delete(entry);
  await t.rejects(place.storage.addVerification(entry, { ...first, detail: '', durationMs: 1 }, null), {
    code: 'BACKUP_NOT_FOUND',
  });
});

void t.test('a backup that is given up is gone, and can never be committed', async (t) => {
  const place = await placeFor(t);
  const request = { jobId: newId(), backupId: newId(), machine };
  await (await place.storage.begin(request)).addVolume(volumeSource(someVolume()), 'v');
  t.match(await place.other().partials(), [{ jobId: request.jobId }], 'of a process that died');
  await (await place.other().begin(request)).abandon();
  t.same(await place.storage.partials(), []);
  await t.rejects(place.storage.begin(request), { code: 'BACKUP_FENCED' });
  t.same(await place.storage.list(), []);
});

void t.test('damage is told by what it touches, and never comes out as data', async (t) => {
  const place = await placeFor(t);
  const { entry } = await store(place, someVolume());
  const packs = await execa('find', [join(place.directory, 'vault/packs'), '-type', 'f', '-size', '+100k']);
  for (const pack of packs.stdout.split('\n')) {
    const bytes = await readFile(pack);
    bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
    await writeFile(pack, bytes);
  }
  const storage = place.other();
  t.match(await storage.verify(entry, { data: false }), { ok: true }, 'all is there');
  t.match(await storage.verify(entry, { data: true }), {
    ok: false,
    files: [{ file: 'volume vda', verdict: 'digest', detail: /missing or damaged/ }],
  });
  await t.rejects(copiedVolume(place, storage, entry), { code: 'BACKUP_DAMAGED' });
  const left = await execa('find', [place.directory, '-name', '*.qcow2']);
  t.equal(left.stdout, '', 'nothing of it is left');
});

void t.test('a file of the host is known to hold what an artifact holds', async (t) => {
  const place = await placeFor(t);
  const { entry } = await store(place, someVolume());
  const nvram = { sha256: entry.manifest?.extras[0]?.sha256 ?? '' };
  const file = join(place.directory, 'file');
  await writeFile(file, '<domain/>');
  t.equal(await place.storage.isSameAs(nvram, file), true);
  await writeFile(file, '<domain />');
  t.equal(await place.storage.isSameAs(nvram, file), false);
});

void t.test('the backup of a host is stored whole, listed, read and removed', async (t) => {
  const { storage, other } = await placeFor(t);
  const text = '<network/>';
  const { createHash } = await import('node:crypto');
  const sha256 = createHash('sha256').update(text).digest('hex');
  const manifest = {
    formatVersion: 1,
    kind: 'host',
    id: newId(),
    writer: 'test',
    host: { name: 'node-1', libvirt: '9', qemu: '7' },
    pointInTime: '2026-11-22T10:00:00.000Z',
    items: [
      { kind: 'network', name: 'default', file: 'network-default.xml', sizeBytes: text.length, sha256 },
    ],
  } as const;
  const stored = { ...manifest, items: [...manifest.items] };
  await storage.addHostBackup(stored, new Map([['network-default.xml', text]]));
  const [entry] = await other().hostBackups();
  t.match(entry, { host: 'node-1', problem: null, manifest });
  if (entry === undefined) return;
  t.equal((await other().hostFile(entry, 'network-default.xml')).toString(), text);
  await t.rejects(other().hostFile(entry, 'another'), { code: 'BACKUP_NOT_FOUND' });
  await other().deleteHostBackup(entry);
  t.same(await storage.hostBackups(), []);
  await t.rejects(storage.deleteHostBackup(entry), { code: 'BACKUP_NOT_FOUND' });
});

void t.test('a repository that cannot be opened says why, and is tried again', async (t) => {
  const place = await placeFor(t);
  let attempts = 0;
  const storage = new RepositoryStorage({
    name: 'vault',
    location: 'x',
    open: () => {
      attempts += 1;
      return Repository.open(
        new FileBackend(join(place.directory, attempts === 1 ? 'gone' : 'vault')),
        testSecret,
      );
    },
    freeBytes: () => Promise.resolve(null),
  });
  t.match(await storage.check(), { ok: false, problem: { message: /gone/ } });
  t.match(await storage.check(), { ok: true, freeBytes: null });
});

void t.test('one that goes away after it was opened is told to be away, and back', async (t) => {
  const { storage, directory } = await placeFor(t);
  t.match(await storage.check(), { ok: true, freeBytes: 1 });
  const [root, elsewhere] = [join(directory, 'vault'), join(directory, 'elsewhere')];
  await rename(root, elsewhere);
  t.match(await storage.check(), { ok: false, problem: { code: 'STORAGE_UNREACHABLE' } });
  // A mount point without its file system.
  await mkdir(root);
  t.match(await storage.check(), { ok: false, problem: { code: 'REPOSITORY_NOT_FOUND' } });
  await rename(elsewhere, root);
  t.match(await storage.check(), { ok: true });
});
