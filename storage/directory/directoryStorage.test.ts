import {
  mkdir,
  open,
  rm,
  readdir,
  readFile,
  rename,
  stat,
  symlink,
  truncate,
  unlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import type { Test } from 'tap';
import { exists } from '../../common/files.ts';
import { StorageError } from '../errors.ts';
import { formatManifest } from '../manifest.ts';
import type { BackupEntry, FileReport } from '../storage.ts';
import { DirectoryStorage } from './directoryStorage.ts';
import { firstTime, makeSample, storeSample } from './fixture.ts';
import type { Sample } from './fixture.ts';

interface Stored {
  readonly work: string;
  readonly root: string;
  readonly storage: DirectoryStorage;
  readonly sample: Sample;
  readonly entry: BackupEntry;
  /** Path of the stored image. */
  readonly image: string;
}

async function stored(t: Test): Promise<Stored> {
  const work = t.testdir({ root: {} });
  const root = join(work, 'root');
  const storage = new DirectoryStorage({ name: 'local', path: root });
  const sample = await makeSample(work);
  const entry = await storeSample(storage, sample);
  return {
    work,
    root,
    storage,
    sample,
    entry,
    image: join(entry.directory, sample.manifest.volumes[0]?.file ?? ''),
  };
}

async function overwrite(path: string, position: number, data: Buffer): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(data, 0, data.length, position);
  await file.close();
}

const bad = (files: readonly FileReport[]): readonly (readonly string[])[] =>
  files.filter(({ verdict }) => verdict !== 'ok').map(({ kind, verdict }) => [kind, verdict]);

void t.test('the digests of the chunks are a part of a backup, but none that a restore needs', async (t) => {
  const { storage, entry, image } = await stored(t);
  const sums = await readFile(`${image}.sums`, 'utf8');
  await writeFile(
    `${image}.sums`,
    sums.replace(/^./, (digit) => (digit === '0' ? '1' : '0')),
  );
  t.same(bad((await storage.verify(entry, { data: false })).files), [['sums', 'digest']]);
  await rm(`${image}.sums`);
  t.same(bad((await storage.verify(entry, { data: true })).files), [['sums', 'missing']]);
  t.equal((await storage.find(entry.id ?? '')).state, 'Active');
});

void t.test('a flipped bit is found by reading every byte', async (t) => {
  const { storage, entry, image } = await stored(t);
  await overwrite(image, 700_000, Buffer.from([0]));
  t.ok((await storage.verify(entry, { data: false })).ok, 'structure and size are as they were');
  const progress: number[] = [];
  const report = await storage.verify(entry, {
    data: true,
    onProgress: ({ bytesDone }) => progress.push(bytesDone),
  });
  t.same([report.ok, bad(report.files)], [false, [['volume', 'digest']]]);
  t.same(
    progress,
    progress.toSorted((a, b) => a - b),
  );
});

void t.test('a truncated file and a missing one are found by every look at the backup', async (t) => {
  const { storage, entry, image, sample } = await stored(t);
  await truncate(image, 1000);
  t.match(await storage.list(), [{ state: 'Killed', id: sample.manifest.id, problem: /1000 bytes/ }]);
  t.same(bad((await storage.verify(entry, { data: false })).files), [['volume', 'size']]);
  await unlink(image);
  t.match(await storage.list(), [{ state: 'Killed', problem: /missing/ }]);
  t.same(bad((await storage.verify(entry, { data: false })).files), [['volume', 'missing']]);
});

void t.test('a changed definition is found without reading the volumes', async (t) => {
  const { storage, entry, sample } = await stored(t);
  await writeFile(join(entry.directory, sample.manifest.definition.file), '<domain/>');
  t.same(bad((await storage.verify(entry, { data: false })).files), [['definition', 'digest']]);
});

void t.test('an image that needs or names other files is refused before any tool opens it', async (t) => {
  const { storage, entry, image, work } = await stored(t);
  const detail = async (): Promise<string | null | undefined> =>
    (await storage.verify(entry, { data: false })).files.find(({ kind }) => kind === 'volume')?.detail;
  const replaceHeader = async (args: readonly string[]): Promise<void> => {
    const crafted = join(work, 'crafted.qcow2');
    await execa('qemu-img', ['create', '-q', '-f', 'qcow2', ...args, crafted, '16M'], { timeout: 30_000 });
    const file = await open(crafted);
    const header = Buffer.alloc(4096);
    await file.read(header, 0, header.length, 0);
    await file.close();
    await overwrite(image, 0, header);
  };
  await replaceHeader(['-u', '-F', 'raw', '-b', '/etc/passwd']);
  t.match(await detail(), /backing file/);
  await replaceHeader(['-o', `data_file=${join(work, 'data')}`]);
  t.match(await detail(), /another file/);
  await overwrite(image, 0, Buffer.from('not an image'));
  t.match(await detail(), /not a qcow2/);
});

void t.test('an encrypted volume is whole when it is said to be encrypted, and only then', async (t) => {
  const work = t.testdir({ root: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  const sample = await makeSample(work, { encrypted: true });
  const entry = await storeSample(storage, sample);
  t.match(await storage.verify(entry, { data: true }), { ok: true });
  const manifest = structuredClone(sample.manifest);
  for (const volume of manifest.volumes) delete volume.encrypted;
  await writeFile(join(entry.directory, 'manifest.json'), JSON.stringify(manifest));
  t.match(await storage.verify(entry, { data: true }), { ok: false });
});

void t.test('one damaged entry never hides the others', async (t) => {
  const { storage, root, work, sample } = await stored(t);
  const directory = (ms: number): string => join(root, 'vm-001', `20261120T160000.00${ms}Z`);
  for (const ms of [0, 1, 2, 3, 4, 5]) await mkdir(directory(ms));
  await writeFile(join(directory(1), 'manifest.json'), '{');
  await truncate(join(directory(1), 'manifest.json'), 5 * 1024 * 1024);
  await writeFile(join(directory(2), 'manifest.json'), '{"formatVersion": 99}');
  await symlink('/etc/passwd', join(directory(3), 'manifest.json'));
  await writeFile(join(directory(4), 'manifest.json'), formatManifest(sample.manifest));
  await mkdir(join(directory(5), 'manifest.json'));
  await mkdir(join(root, 'vm-001', '.partial-job'));
  await mkdir(join(root, 'vm-001', 'lost+found'));
  await mkdir(join(root, 'lost+found'));
  await symlink(join(root, 'vm-001'), join(root, 'link'));
  await symlink(directory(0), join(root, 'vm-001', '20261120T170000.000Z'));
  const entries = await storage.list();
  t.same(
    entries.map(({ state }) => state),
    ['Active', 'Killed', 'Killed', 'Killed', 'Killed', 'Killed', 'Killed'],
  );
  t.match(
    entries.slice(1).map(({ problem }) => problem),
    [/missing/, /bytes/, /version 99/, /link/, /point in time/, /regular/],
  );
  t.match(await storage.find('vm-001@2026-11-20T16:00:00.000Z'), {
    state: 'Killed',
    machine: { name: 'vm-001' },
  });
  t.match(await storage.find('vm-001@latest'), { state: 'Active' });
  t.same(await storage.list({ machine: 'other' }), []);
  await storeSample(storage, await makeSample(work, { time: new Date(firstTime.getTime() + 1) }));
  t.equal(
    (await storage.list({ machine: sample.machine.uuid })).filter(({ state }) => state === 'Active').length,
    2,
  );
});

void t.test('a backup is found by id, by the beginning of it, by machine and time', async (t) => {
  const { storage, sample } = await stored(t);
  const { id } = sample.manifest;
  for (const name of [id, id.toUpperCase(), id.slice(0, 13), 'vm-001@latest', 'vm-001@20261120T151523.123Z'])
    t.equal((await storage.find(name)).id, id, name);
  for (const name of [
    id.slice(0, 7),
    'vm-002@latest',
    'vm-001@20261120T151523.124Z',
    'vm-001',
    '',
    '@',
    '../x',
    'vm-001@x',
  ])
    await t.rejects(storage.find(name), { code: 'BACKUP_NOT_FOUND' }, name);
});

void t.test(
  'a deletion removes the backup and the empty machine, and a crash in it is finished later',
  async (t) => {
    const { storage, root, entry, work, sample } = await stored(t);
    const later = await storeSample(
      storage,
      await makeSample(work, { time: new Date(firstTime.getTime() + 1) }),
    );
    await storage.delete(entry);
    await storage.delete(entry);
    t.same(await readdir(join(root, 'vm-001')), ['20261120T151523.124Z']);

    await rename(later.directory, join(root, 'vm-001', '.deleting-20261120T151523.124Z'));
    t.same(await storage.list(), []);
    await unlink(join(root, 'vm-001', '.deleting-20261120T151523.124Z', 'manifest.json'));
    t.equal(await storage.cleanUp(), 1);
    t.equal(await storage.cleanUp(), 0);
    t.notOk(await exists(join(root, 'vm-001')), sample.machine.name);
  },
);

void t.test(
  'a protected backup is not deleted before its protection is off, and is what it was',
  async (t) => {
    const { storage, entry, sample } = await stored(t);
    const file = join(entry.directory, 'protected.json');
    const manifest = await readFile(join(entry.directory, 'manifest.json'), 'utf8');
    t.match(entry, { protected: false, protectedReason: null });
    await storage.setProtected(entry, { reason: 'before the upgrade' });
    t.equal((await stat(file)).mode & 0o777, 0o600);
    t.match(await storage.list(), [
      { state: 'Active', protected: true, protectedReason: 'before the upgrade' },
    ]);
    t.ok((await storage.verify(entry, { data: true })).ok);
    t.equal((await storage.findCommitted(sample.manifest.id))?.id, sample.manifest.id);
    // The entry is from before: what counts is what is on the disk.
    await t.rejects(storage.delete(entry), {
      code: 'BACKUP_PROTECTED',
      message: /before the upgrade/,
      hint: /protect \S+ --off/,
    });
    await storage.setProtected(entry, { reason: null });
    await t.rejects(storage.delete(entry), { code: 'BACKUP_PROTECTED' });
    t.match(await storage.find(sample.manifest.id), { protected: true, protectedReason: null });
    await storage.setProtected(entry, null);
    await storage.setProtected(entry, null);
    t.match(await storage.list(), [{ protected: false, protectedReason: null }]);
    t.equal(await readFile(join(entry.directory, 'manifest.json'), 'utf8'), manifest, 'it is never touched');
    await storage.delete(entry);
    await t.rejects(storage.setProtected(entry, { reason: null }), { code: 'BACKUP_NOT_FOUND' });
    t.same(await storage.list(), []);
  },
);

void t.test('a protection that cannot be read protects', async (t) => {
  const { storage, entry, work } = await stored(t);
  const file = join(entry.directory, 'protected.json');
  const at = '2026-11-20T15:15:23.123Z';
  const contents = [
    '',
    '{',
    '{}',
    'null',
    `{"at":"${at}"}`,
    `{"at":"${at}","reason":null,"more":1}`,
    'x'.repeat(99_999),
  ];
  contents.push(`{"at":"${at}","reason":"${'x'.repeat(1001)}"}`, `{"at":"soon","reason":null}`);
  for (const content of contents) {
    await writeFile(file, content);
    t.match(await storage.list(), [{ state: 'Active', protected: true, protectedReason: /cannot be read/ }]);
    await t.rejects(storage.delete(entry), { code: 'BACKUP_PROTECTED' }, content.slice(0, 40));
  }
  await unlink(file);
  await symlink(join(work, 'nowhere'), file);
  await t.rejects(storage.delete(entry), { code: 'BACKUP_PROTECTED' }, 'a link that leads nowhere');
  await storage.setProtected(entry, { reason: null });
  t.match(await storage.list(), [{ protected: true, protectedReason: null }]);
});

void t.test('a deletion that several finish at once is finished, and fails for none of them', async (t) => {
  const { storage, root, entry } = await stored(t);
  await rename(entry.directory, join(root, 'vm-001', '.deleting-20261120T151523.123Z'));
  await Promise.all(Array.from({ length: 4 }, () => storage.cleanUp()));
  t.notOk(await exists(join(root, 'vm-001')));
});

void t.test('a protection that meets a deletion on its way wins', async (t) => {
  const { storage, root, entry, sample } = await stored(t);
  // As if the deletion had been killed right after its rename, and the protection had come right before it.
  const deleting = join(root, 'vm-001', '.deleting-20261120T151523.123Z');
  await storage.setProtected(entry, { reason: null });
  await rename(entry.directory, deleting);
  await t.rejects(storage.cleanUp(), { code: 'BACKUP_PROTECTED' });
  t.notOk(await exists(deleting));
  t.match(await storage.find(sample.manifest.id), { state: 'Active', protected: true });
  t.ok((await storage.verify(entry, { data: true })).ok);
});

void t.test('the file of a protection is never one of the backup', async (t) => {
  const { storage, entry, sample } = await stored(t);
  const { volumes } = sample.manifest;
  const manifest = {
    ...sample.manifest,
    volumes: volumes.map((item) => ({ ...item, file: 'protected.json' })),
  };
  await t.rejects(storage.setProtected({ ...entry, manifest }, null), { code: 'FOREIGN_CONTENT' });
  await t.rejects(storage.setProtected({ ...entry, directory: '/etc' }, null), { code: 'FOREIGN_CONTENT' });
  const writer = await storage.begin({ ...sample, jobId: 'other' });
  await t.rejects(writer.addByCopy(sample.definition, 'protected.json'), { code: 'NAME_INVALID' });
});

void t.test('nothing outside of the storage is ever deleted', async (t) => {
  const { storage, root, entry, work } = await stored(t);
  const outside = join(work, 'vm-001', '20261120T151523.123Z');
  await mkdir(outside, { recursive: true });
  await writeFile(join(outside, 'precious'), '');
  const elsewhere = [
    outside,
    root,
    join(root, 'vm-001'),
    join(root, 'vm-001', '..', '..', 'vm-001', '20261120T151523.123Z'),
  ];
  await symlink(join(work, 'vm-001'), join(root, 'link'));
  for (const directory of [...elsewhere, join(root, 'link', '20261120T151523.123Z')]) {
    await t.rejects(storage.delete({ ...entry, directory }), { code: 'FOREIGN_CONTENT' }, directory);
    await t.rejects(storage.verify({ ...entry, directory }, { data: false }), { code: 'FOREIGN_CONTENT' });
  }
  await symlink(join(outside, 'precious'), join(entry.directory, 'link'));
  await mkdir(join(entry.directory, 'kept'));
  await t.rejects(storage.delete(entry), { code: 'FOREIGN_CONTENT' });
  t.ok(await exists(entry.directory));
  await rename(join(entry.directory, 'kept'), join(work, 'kept'));
  await storage.delete(entry);
  t.ok(await exists(join(outside, 'precious')), 'a link is removed, not what it leads to');
});

void t.test('a link in place of a machine is not followed', async (t) => {
  const work = t.testdir({ root: {}, elsewhere: {} });
  await symlink(join(work, 'elsewhere'), join(work, 'root', 'vm-001'));
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  await t.rejects(storeSample(storage, await makeSample(work)), { code: 'FOREIGN_CONTENT' });
  t.same(await readdir(join(work, 'elsewhere')), []);
});

void t.test('a storage that is not there is unreachable, and is not made up on the wrong disk', async (t) => {
  const work = t.testdir({ file: '' });
  for (const path of [join(work, 'missing'), join(work, 'file')]) {
    const storage = new DirectoryStorage({ name: 'local', path });
    t.match(await storage.check(), { ok: false, problem: { code: 'STORAGE_UNREACHABLE', hint: /mkdir/ } });
    await t.rejects(storage.list(), { code: 'STORAGE_UNREACHABLE' });
    await t.rejects(storage.begin(await makeSample(work)), { code: 'STORAGE_UNREACHABLE' });
  }
  t.same((await new DirectoryStorage({ name: 'local', path: work }).check()).ok, true);
});

void t.test(
  'a full and a read-only file system are told apart and leave no half file',
  { skip: process.getuid?.() !== 0 && 'needs root' },
  async (t) => {
    const work = t.testdir({ root: {} });
    const root = join(work, 'root');
    await writeFile(join(work, 'large'), Buffer.alloc(3 * 1024 * 1024, 1));
    const inside = `
    import { readdirSync } from 'node:fs';
    import { execaSync } from 'execa';
    import { DirectoryStorage } from ${JSON.stringify(join(import.meta.dirname, 'directoryStorage.ts'))};
    const root = ${JSON.stringify(root)};
    const storage = new DirectoryStorage({ name: 'local', path: root });
    const machine = { name: 'vm', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' };
    const writer = await storage.begin({ jobId: 'j', machine });
    const codes = [];
    await writer.addByCopy(${JSON.stringify(join(work, 'large'))}, 'x').catch((error) => codes.push(error.code));
    codes.push(readdirSync(writer.directory).length);
    execaSync('mount', ['-o', 'remount,ro', root], { timeout: 10_000 });
    await writer.addByCopy(${JSON.stringify(join(work, 'large'))}, 'x').catch((error) => codes.push(error.code));
    codes.push((await storage.check()).problem.code);
    process.stdout.write(JSON.stringify(codes));`;
    const script = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" --input-type=module -e "$3"';
    const { stdout } = await execa(
      'unshare',
      ['-m', '--propagation', 'private', 'sh', '-c', script, 'sh', root, process.execPath, inside],
      { timeout: 60_000, cwd: import.meta.dirname },
    );
    t.same(JSON.parse(stdout), ['STORAGE_FULL', 0, 'STORAGE_READ_ONLY', 'STORAGE_READ_ONLY']);
  },
);

void t.test('errors of a storage say what to type next', async (t) => {
  const error = await new DirectoryStorage({ name: 'x', path: '/nowhere/at/all' })
    .list()
    .catch((thrown: unknown) => thrown);
  t.ok(error instanceof StorageError);
  t.match(error, { hint: /mkdir -p/ });
});

void t.test(
  'the order of backups is that of their manifests, whatever the times of their files',
  async (t) => {
    const { storage, root, entry, work } = await stored(t);
    const later = await storeSample(
      storage,
      await makeSample(work, { time: new Date(firstTime.getTime() + 1000) }),
    );
    const touch = async (directory: string, time: Date): Promise<void> => {
      for (const name of await readdir(directory)) await utimes(join(directory, name), time, time);
      await utimes(directory, time, time);
    };
    await touch(later.directory, new Date(0));
    await touch(entry.directory, new Date());
    await touch(join(root, 'vm-001'), new Date());
    t.equal((await storage.find('vm-001@latest')).id, later.id);
    t.same(
      (await storage.list()).map(({ id }) => id),
      [entry.id, later.id],
    );
  },
);
