import { randomBytes } from 'node:crypto';
import { chmod, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { FileBackend } from '../backends/fileBackend.ts';
import { Repository } from '../repository/repository.ts';
import { initTestRepository, testSecret, volumeSource } from '../repository/repositoryFixture.ts';
import { copiedVolume, machine, owner, placeFor, someVolume, store } from './fixture.ts';
import { RepositoryStorage } from './repositoryStorage.ts';

/** Changes a bit of each pack with data. */
async function damagePacks(packs: string): Promise<void> {
  for (const name of await readdir(packs, { recursive: true })) {
    const path = join(packs, name);
    const status = await stat(path);
    if (!status.isFile() || status.size < 100_000) continue;
    const bytes = await readFile(path);
    bytes.writeUInt8(bytes.readUInt8(bytes.length >> 1) ^ 1, bytes.length >> 1);
    await chmod(path, 0o600);
    await writeFile(path, bytes);
  }
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
    volumes: [{ storedBytes: 17 * 65_536, owner, source: '/images/web.qcow2' }],
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

void t.test('who copies an artifact out is told its size when all is read, and not before', async (t) => {
  const place = await placeFor(t);
  const { entry } = await store(place, someVolume());
  const { volumes = [], memory } = entry.manifest ?? {};
  const artifacts = [
    { as: 'volume', sizeBytes: volumes[0]?.storedBytes ?? 0, sha256: volumes[0]?.sha256 ?? '' },
    { as: 'file', sizeBytes: memory?.sizeBytes ?? 0, sha256: memory?.sha256 ?? '' },
    // As one whose manifest says less than there is.
    { as: 'volume', sizeBytes: 10, sha256: volumes[0]?.sha256 ?? '' },
  ] as const;
  for (const { as, ...artifact } of artifacts) {
    const told: number[] = [];
    const to = join(place.directory, newId());
    const onProgress = (bytes: number): void => void told.push(bytes);
    await place.storage.copyOut({ path: 'a', ...artifact }, to, { as, onProgress });
    t.equal(told.at(-1), artifact.sizeBytes);
    t.ok(
      told.slice(0, -1).every((bytes) => bytes < artifact.sizeBytes),
      String(told),
    );
  }
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
  'what a check finds damaged is used by no later backup, which heals the earlier one',
  async (t) => {
    const place = await placeFor(t);
    const volume = someVolume();
    const { entry } = await store(place, volume);
    const packs = join(place.directory, 'vault', 'packs');
    await damagePacks(packs);
    t.match(await place.other().verify(entry, { data: true }), { ok: false });
    const code = 'PARENT_UNUSABLE';
    const message = /damaged or gone/;
    await t.rejects(store(place, volume, { parent: entry.id ?? '', changes: [] }), { code, message });
    const { entry: anew } = await store(place, volume);
    t.match(await place.other().verify(anew, { data: true }), { ok: true });
    // Its memory was random, and is nowhere else.
    const files = [{ file: 'volume vda', verdict: 'ok' }];
    t.match(await place.other().verify(entry, { data: true }), { files }, 'its volume is there once more');
    t.ok((await copiedVolume(place, place.other(), entry)).equals(volume));
    await rm(packs, { recursive: true });
    await t.rejects(
      store(place, volume, { parent: anew.id ?? '', changes: [] }),
      { code },
      'nor what is gone',
    );
  },
);

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
  const records = join(place.directory, 'vault', 'verifications', entry.id ?? '');
  t.equal((await readdir(records)).length, 2);
  await place.storage.delete(entry);
  t.same(await readdir(records), [], 'pictures take room');
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

void t.test(
  'an encrypted volume comes out as what its machine opens: qcow2 as it stood, LUKS in qcow2',
  async (t) => {
    const place = await placeFor(t);
    const writer = await place.storage.begin({ jobId: newId(), backupId: newId(), machine });
    const luks = Buffer.concat([
      Buffer.from('LUKS\u00ba\u00be', 'latin1'),
      randomBytes(70_000),
      Buffer.alloc(61_066),
    ]);
    const container = await writer.addVolume(volumeSource(luks), 'luks');
    const image = join(place.directory, 'image.qcow2');
    await execa('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M']);
    const qcow2 = await writer.addByCopy(image, 'qcow2');
    await writer.flush();
    const out = async (sha256: string, name: string): Promise<string> => {
      const to = join(place.directory, name);
      await place.other().copyOut({ path: name, sizeBytes: 1, sha256 }, to, { as: 'opaque volume' });
      return to;
    };
    t.ok((await readFile(await out(qcow2.sha256, 'q'))).equals(await readFile(image)), 'as it stood');
    const raw = join(place.directory, 'raw');
    await execa('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', await out(container.sha256, 'l'), raw]);
    t.ok((await readFile(raw)).equals(luks));
  },
);

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

void t.test('what several backups share is compared once in a run', async (t) => {
  const place = await placeFor(t);
  const volume = someVolume();
  const first = await store(place, volume, { time: '2026-11-22T10:00:00.000Z' });
  const second = await store(place, volume, { time: '2026-11-22T11:00:00.000Z' });
  const reads: string[] = [];
  const storage = place.other((name) => reads.push(name));
  const compared = new Set<string>();
  const verified = async ({ entry }: typeof first): Promise<readonly string[]> => {
    reads.length = 0;
    t.match(await storage.verify(entry, { data: true, compared }), { ok: true });
    return reads.filter((name) => name.startsWith('packs/') && compared.has(name));
  };
  const once = new Set(await verified(first));
  const again = await verified(second);
  t.ok(once.size > 0 && again.length > 0, 'each has packs of its own');
  t.same(
    again.filter((name) => once.has(name)),
    [],
    'and none is read twice',
  );
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
    room: () => Promise.resolve(null),
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

void t.test('that every byte was read is told beside a backup, and goes with it', async (t) => {
  const place = await placeFor(t);
  const { entry } = await store(place, someVolume());
  const told = async () => (await place.other().list()).map(({ dataVerified }) => dataVerified);
  t.same(await told(), [null]);
  await place.storage.addDataVerification(entry, { at: '2026-11-20T10:00:00.000Z', ok: true });
  const last = { at: '2026-11-21T10:00:00.000Z', ok: false };
  await place.other().addDataVerification(entry, last);
  t.same(await told(), [last]);
  await place.storage.delete(entry);
  await t.rejects(place.storage.addDataVerification(entry, last), { code: 'BACKUP_NOT_FOUND' });
  t.same(await readdir(join(place.directory, 'vault', 'readings', entry.id ?? '')).catch(() => []), []);
});

void t.test(
  'a repository that was made anew in the same place is the one that is written into',
  async (t) => {
    const place = await placeFor(t);
    await store(place, someVolume());
    const root = join(place.directory, 'vault');
    await rm(root, { recursive: true });
    await mkdir(root);
    await initTestRepository(new FileBackend(root));
    const { entry } = await store(place, someVolume());
    t.match(await place.other().list(), [{ id: entry.id, state: 'Active' }]);
  },
);
