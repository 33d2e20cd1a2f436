import { mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { hashFile } from '../../common/copy.ts';
import { exists } from '../../common/files.ts';
import { DirectoryStorage } from './directoryStorage.ts';
import { firstTime, machine, makeSample, stepsOf, storeSample } from './fixture.ts';
import { GeneratedSource, problemOfVolume, turns } from './volumeFixture.ts';

const time = '20261120T151523.123Z';

void t.test('a backup stands under its T1, complete, with nothing else beside it', async (t) => {
  const work = t.testdir({ root: {} });
  const root = join(work, 'root');
  const storage = new DirectoryStorage({ name: 'local', path: root });
  const sample = await makeSample(work);
  const entry = await storeSample(storage, sample);
  t.match(entry, {
    state: 'Active',
    id: sample.manifest.id,
    problem: null,
    directory: join(root, 'vm-001', time),
  });
  t.same((await readdir(join(root, 'vm-001'), { recursive: true })).toSorted(), [
    time,
    `${time}/manifest.json`,
    `${time}/vm-001-vda.qcow2.${time}`,
    `${time}/vm-001-vda.qcow2.${time}.sums`,
    `${time}/vm-001.state.${time}`,
    `${time}/vm-001.xml.${time}`,
  ]);
  t.notOk(await exists(sample.image), 'the image has been renamed, not copied');
  t.same(await storage.verify(entry, { data: true }).then(({ ok }) => ok), true);
});

void t.test('after a crash before or after any step, the same job ends in the same backup', async (t) => {
  const work = t.testdir({});
  for (const lost of [0, 1, 2, 3, 4]) {
    const root = join(work, `root${lost}`);
    await mkdir(root);
    const storage = new DirectoryStorage({ name: 'local', path: root });
    const sample = await makeSample(work);
    const steps = stepsOf(sample);
    const abandoned = await storage.begin(sample);
    for (const step of steps.slice(0, lost)) await step(abandoned);

    if ((await storage.findCommitted(sample.manifest.id)) === null) {
      const writer = await storage.begin(sample);
      t.equal(writer.directory, abandoned.directory);
      for (const step of steps) await step(writer);
    } else {
      t.equal(lost, 4);
      t.equal(
        (await (await storage.begin(sample)).commit(sample.manifest)).id,
        sample.manifest.id,
        'commit again',
      );
    }
    t.same(await readdir(join(root, 'vm-001')), [time]);
    const [entry, ...others] = await storage.list();
    t.match(entry, { state: 'Active', id: sample.manifest.id });
    t.equal(others.length, 0);
  }
});

void t.test(
  'what a killed copy or write left behind is taken away, and what is not ours stops the commit',
  async (t) => {
    const work = t.testdir({ root: {} });
    const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
    const sample = await makeSample(work);
    const writer = await storage.begin(sample);
    await writeFile(join(writer.directory, `.0123.copying.tmp`), 'half');
    await writeFile(join(writer.directory, '.manifest.json.0123456789abcdef.tmp'), 'half');
    await writeFile(join(writer.directory, 'notes.txt'), 'mine');
    for (const step of stepsOf(sample).slice(0, 3)) await step(writer);
    await t.rejects(writer.commit(sample.manifest), { code: 'FOREIGN_CONTENT', message: /notes\.txt/ });
    const again = await makeSample(work);
    t.equal((await storage.list()).length, 0);
    await writer.abandon();
    await writer.abandon();
    await storeSample(storage, again);
    t.equal((await readdir(join(work, 'root', 'vm-001', time))).length, 5);
  },
);

void t.test('a backup of the same T1 is never overwritten', async (t) => {
  const work = t.testdir({ root: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  const first = await storeSample(storage, await makeSample(work));
  const manifestBefore = await readFile(join(first.directory, 'manifest.json'), 'utf8');
  await t.rejects(storeSample(storage, await makeSample(work)), { code: 'BACKUP_EXISTS' });
  t.equal(await readFile(join(first.directory, 'manifest.json'), 'utf8'), manifestBefore);
  t.equal((await storage.partials()).length, 1, 'the other job keeps what it has gathered');
});

void t.test('two jobs at once do not disturb each other', async (t) => {
  const work = t.testdir({ root: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  const samples = [
    await makeSample(work),
    await makeSample(work, { time: new Date(firstTime.getTime() + 1) }),
  ];
  await Promise.all(samples.map((sample) => storeSample(storage, sample)));
  t.same(
    (await storage.list()).map(({ state, id }) => [state, id]),
    samples.map(({ manifest }) => ['Active', manifest.id]),
  );
});

void t.test('another machine of the same name gets a directory of its own', async (t) => {
  const work = t.testdir({ root: {} });
  const root = join(work, 'root');
  const storage = new DirectoryStorage({ name: 'local', path: root });
  const other = { name: machine.name, uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a02' };
  const early = await storage.begin({ jobId: 'early', machine: other });
  await storeSample(storage, await makeSample(work));
  const second = await storeSample(storage, await makeSample(work, { machine: other }));
  t.equal(second.directory, join(root, `vm-001~${other.uuid}`, time));

  const late = await makeSample(work, { machine: other, time: new Date(firstTime.getTime() + 5) });
  for (const step of stepsOf(late)) await step(early);
  t.equal(
    (await storage.find(late.manifest.id)).directory,
    join(root, `vm-001~${other.uuid}`, '20261120T151523.128Z'),
  );
  await t.rejects(storage.find('vm-001@latest'), { code: 'BACKUP_AMBIGUOUS' });
  t.equal((await storage.find(`${other.uuid}@latest`)).id, late.manifest.id);
});

void t.test('an incomplete backup cannot be committed, nor one of another machine', async (t) => {
  const work = t.testdir({ root: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  const sample = await makeSample(work);
  const writer = await storage.begin(sample);
  await t.rejects(writer.commit(sample.manifest), { code: 'FILE_MISSING' });
  await t.rejects(writer.commit({ ...sample.manifest, machine: { ...machine, name: 'other' } }), {
    code: 'MANIFEST_INVALID',
  });
  t.equal((await storage.list()).length, 0);
});

void t.test(
  'files come in with the owner and mode asked for, and an abort leaves nothing half',
  async (t) => {
    const work = t.testdir({ root: {} });
    const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
    const sample = await makeSample(work);
    const writer = await storage.begin(sample);
    const ownership = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, mode: 0o600 };
    const abort = AbortSignal.abort(new Error('enough'));
    await t.rejects(writer.addByCopy(sample.state, 'state', { signal: abort }), /enough/);
    t.same(await readdir(writer.directory), []);
    await writer.addByCopy(sample.state, 'state', { ownership });
    await writer.addByRename(sample.image, 'image', { ownership });
    for (const name of ['state', 'image'])
      t.equal((await stat(join(writer.directory, name))).mode & 0o777, 0o600);
    await t.rejects(writer.addByRename(join(work, 'nothing'), 'nothing'), { code: 'FILE_MISSING' });
    await t.rejects(writer.addByRename(sample.state, 'state'), { code: 'BACKUP_EXISTS' });
    await t.rejects(writer.addByRename('/proc/self/status', 'status'), { code: 'CROSS_FILE_SYSTEM' });
    await t.rejects(writer.addByCopy(sample.state, '../x'), { code: 'NAME_INVALID' });
    await symlink(sample.state, join(work, 'link'));
    await t.rejects(writer.addByRename(join(work, 'link'), 'link'), { code: 'FOREIGN_CONTENT' });
    t.ok(await storage.takesByRename(work));
    t.notOk(await storage.takesByRename('/proc/self'));
    t.ok(await storage.isOnDeviceOf(join(work, 'not', 'there', 'yet')));
    t.notOk(await storage.isOnDeviceOf('/proc/self'));
  },
);

void t.test('a volume is written once, whatever a killed predecessor left of it', async (t) => {
  const work = t.testdir({ root: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  const writer = await storage.begin({ jobId: 'j', machine });
  const source = new GeneratedSource(5_000_192, turns([100_000, 3_000_000, 5_000_192], false));
  const ownership = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, mode: 0o640 };

  // Killed in the middle: what it left has the name that its successors know.
  const killed = Promise.withResolvers<string>();
  const stuck = new AbortController();
  const dead = writer.addVolume(
    {
      virtualSizeBytes: source.virtualSizeBytes,
      extents: () => source.extents(),
      readInto: async () => {
        killed.resolve((await readdir(writer.directory))[0] ?? '');
        return Promise.withResolvers<never>().promise;
      },
    },
    'volume',
    { signal: stuck.signal },
  );
  const leftover = await killed.promise;
  t.match(leftover, /^\..*\.copying\.tmp$/);
  const digest = await writer.addVolume(source, 'volume', { ownership });
  t.same(await readdir(writer.directory), ['volume', 'volume.sums'], 'what was left is removed');
  stuck.abort(new Error('killed'));
  await t.rejects(dead, /killed/);
  t.same(await readdir(writer.directory), ['volume', 'volume.sums']);

  const path = join(writer.directory, 'volume');
  const { sums, ...stored } = await hashFile(path, { digest: 'chunks' });
  t.same(digest, stored);
  t.equal(await readFile(`${path}.sums`, 'utf8'), sums);
  t.equal((await stat(path)).mode & 0o7777, 0o640);
  t.equal(await problemOfVolume(path, source, join(work, 'reference')), null);

  const { reads } = source;
  await rm(`${path}.sums`);
  t.same(await writer.addVolume(source, 'volume'), digest, 'after a crash behind the rename');
  t.equal(await readFile(`${path}.sums`, 'utf8'), sums, 'the digests of its chunks too');
  t.equal(source.reads, reads, 'the source is not asked again');
  await t.rejects(writer.addVolume(source, '../volume'), { code: 'NAME_INVALID' });
});

void t.test('an increment stands alone: what it was made of can go', async (t) => {
  const work = t.testdir({ root: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  const first = await makeSample(work);
  const parent = await storeSample(storage, first);
  const second = await makeSample(work, { time: new Date(firstTime.getTime() + 1000) });
  const writer = await storage.begin(second);
  const size = 16 * 1024 * 1024;
  const mebibyte = 1024 * 1024;
  // The sample's own first MiB has changed to this.
  const source = new GeneratedSource(size, turns([mebibyte, size], false));
  const changes = [{ offsetBytes: 0, lengthBytes: mebibyte, zero: false }];
  const file = second.manifest.volumes[0]?.file ?? '';
  for (const backupId of ['0193e0a0-0000-7000-8000-000000000000', second.manifest.id])
    await t.rejects(
      writer.addIncrement(source, { parent: { backupId, target: 'vda' }, changes }, file),
      { code: 'PARENT_UNUSABLE', message: /no backup/ },
      'a backup that is not there',
    );
  const increment = { parent: { backupId: first.manifest.id, target: 'vda' }, changes };
  const digest = await writer.addIncrement(source, increment, file);
  t.same(await writer.addIncrement(source, increment, file), digest, 'after a crash behind the rename');
  for (const step of stepsOf(second).slice(1, 3)) await step(writer);
  const [volume] = second.manifest.volumes;
  if (volume === undefined) throw new Error('the sample has a volume');
  const { sizeBytes: storedBytes, sha256 } = digest;
  await writer.commit({
    ...second.manifest,
    volumes: [{ ...volume, storedBytes, sha256, read: 'increment', parent: first.manifest.id }],
  });
  await storage.delete(parent);
  const entry = await storage.find(second.manifest.id);
  t.ok((await storage.verify(entry, { data: true })).ok);
  t.equal(await problemOfVolume(join(entry.directory, file), source, join(work, 'reference')), null);
  await rm(join(entry.directory, file));
  const third = await storage.begin(await makeSample(work));
  await t.rejects(
    third.addIncrement(source, { parent: { backupId: entry.id ?? '', target: 'vda' }, changes }, 'volume'),
    { code: 'PARENT_UNUSABLE', message: /missing/ },
    'a backup that is damaged',
  );
});

void t.test('a source that fails is not taken for a storage that fails', async (t) => {
  const work = t.testdir({ root: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  const writer = await storage.begin({ jobId: 'j', machine });
  const good = new GeneratedSource(8 * 1024 * 1024, turns([8 * 1024 * 1024], false));
  const broken = Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO', syscall: 'read' });
  const source = {
    virtualSizeBytes: good.virtualSizeBytes,
    extents: () => good.extents(),
    readInto: (target: Buffer, offsetBytes: number) =>
      offsetBytes > 0 ? Promise.reject(broken) : good.readInto(target, offsetBytes),
  };
  t.equal(await writer.addVolume(source, 'volume').catch((thrown: unknown) => thrown), broken);
  t.same(await readdir(writer.directory), []);
});

void t.test(
  'a storage that fills up while a volume is written says so at once and keeps nothing of it',
  { skip: process.getuid?.() === 0 ? false : 'mounting needs root' },
  async (t) => {
    const work = t.testdir({ root: {} });
    const root = join(work, 'root');
    const inside = `
    import { readdirSync } from 'node:fs';
    import { DirectoryStorage } from ${JSON.stringify(join(import.meta.dirname, 'directoryStorage.ts'))};
    import { GeneratedSource, turns } from ${JSON.stringify(join(import.meta.dirname, 'volumeFixture.ts'))};
    const storage = new DirectoryStorage({ name: 'local', path: ${JSON.stringify(root)} });
    const writer = await storage.begin({ jobId: 'j', machine: ${JSON.stringify(machine)} });
    const size = 64 * 1024 * 1024;
    const good = new GeneratedSource(size, turns([size], false));
    const keepAlive = setInterval(() => undefined, 1000);
    const source = {
      virtualSizeBytes: size,
      extents: () => good.extents(),
      // Whoever waits for the next block does not learn of the full disk.
      readInto: (target, offset) =>
        offset < 16 * 1024 * 1024 ? good.readInto(target, offset) : new Promise(() => {}),
    };
    const found = [];
    await writer.addVolume(source, 'x').catch((error) => found.push(error.code, error.message));
    clearInterval(keepAlive);
    process.stdout.write(JSON.stringify([...found, readdirSync(writer.directory).length]));`;
    const script = 'mount -t tmpfs -o size=6m none "$1" && exec "$2" --input-type=module -e "$3"';
    const { stdout } = await execa(
      'unshare',
      ['-m', '--propagation', 'private', 'sh', '-c', script, 'sh', root, process.execPath, inside],
      { timeout: 60_000, cwd: import.meta.dirname },
    );
    t.match(JSON.parse(stdout), ['STORAGE_FULL', /^writing .*no space left/, 0]);
  },
);
