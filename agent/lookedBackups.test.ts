import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmod,
  chown,
  lstat,
  mkdir,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { mountPoints } from './restore/fuse.ts';
import type { BackupEntry } from '../storage/storage.ts';
import { extImage, type LookStage, lookStage, storageNames, storeVolumes } from './lookedFixture.ts';

const { signal } = new AbortController();

async function fillHost(root: string): Promise<void> {
  await mkdir(join(root, 'etc/app'), { recursive: true });
  await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost\n', { mode: 0o640 });
  await chown(join(root, 'etc/hosts'), 1234, 4321);
  await utimes(join(root, 'etc/hosts'), 1_000_000_000, 1_000_000_000);
  await writeFile(join(root, 'etc/app/größe, with a space'), 'grün');
  await writeFile(join(root, 'etc/app/large'), Buffer.alloc(3_000_001, 'abcdefg'));
  await writeFile(join(root, 'etc/app/empty'), '');
  await writeFile(join(root, 'etc/app/passwd-tool'), '#!', { mode: 0o755 });
  await chmod(join(root, 'etc/app/passwd-tool'), 0o4755);
  await execa('mkfifo', [join(root, 'etc/app/pipe')]);
  await symlink('../../../../../tmp', join(root, 'etc/app/out'));
  await symlink('/etc/app', join(root, 'conf'));
  await symlink(`/${'long/'.repeat(30)}end`, join(root, 'etc/app/far'));
  await chmod(join(root, 'etc/app'), 0o2751);
}

void t.test('volumes of a backup are raw files, read-only, and gone when their mount ends', async (t) => {
  const stage = await lookStage(t);
  const [first, second] = [await extImage(t, fillHost), Buffer.alloc(1024 * 1024, 7)];
  for (const name of storageNames) {
    const entry = await storeVolumes(stage.storage(name), stage.directory, { vda: first, vdb: second });
    const directory = join(stage.directory, `mnt of ${name}`);
    const mistyped = stage.looked.mount(entry, join(stage.directory, 'mtn', name), undefined);
    await t.rejects(mistyped, { code: 'MOUNT_FAILED', message: /no directory .*mtn$/ });
    await t.rejects(stat(join(stage.directory, 'mtn')), { code: 'ENOENT' }, 'and nothing is made');
    const look = await stage.looked.mount(entry, directory, undefined);
    t.same(await readdir(directory), ['vda.raw', 'vdb.raw']);
    t.ok((await readFile(join(directory, 'vda.raw'))).equals(first), `${name} gives what was stored`);
    t.ok((await readFile(join(directory, 'vdb.raw'))).equals(second));
    t.equal((await stat(join(directory, 'vda.raw'))).mode & 0o777, 0o400);
    const write = await execa(
      'dd',
      ['if=/dev/zero', `of=${join(directory, 'vda.raw')}`, 'count=1', 'conv=notrunc'],
      { reject: false },
    );
    t.equal(write.failed, true, 'nobody writes to it');
    await t.rejects(stage.other().mount(entry, directory, undefined), { code: 'PATH_TAKEN' });
    await t.rejects(stage.looked.requireUnused(entry), { code: 'MOUNT_BUSY' }, 'nor deletes it');
    await stage.looked.looks.end(look);
    await t.rejects(stat(directory), { code: 'ENOENT' });
    t.same(await stage.looked.looks.list(), []);
    await stage.looked.requireUnused(entry);
    t.equal((await stage.storage(name).verify(entry, { data: true })).ok, true, 'the backup is as it was');
  }
});

void t.test('files of a guest are taken out by their paths, with owners, modes and times', async (t) => {
  const stage = await lookStage(t);
  const image = await extImage(t, fillHost);
  for (const name of storageNames) {
    const entry = await storeVolumes(stage.storage(name), stage.directory, { vda: image });
    const to = join(stage.directory, `out-${name}`);
    const request = { entry, signal };
    const { fileSystem, extracted } = await stage.looked.extract(request, ['/etc', 'conf'], {
      to,
      force: false,
    });
    t.equal(fileSystem, 'vda');
    t.match(extracted, { files: 5, directories: 2, links: 3, skipped: ['/etc/app/pipe'], unreadable: [] });
    t.equal(await readFile(join(to, 'etc/hosts'), 'utf8'), '127.0.0.1 localhost\n');
    const { uid, gid, mode, mtimeMs } = await stat(join(to, 'etc/hosts'));
    t.same({ uid, gid, mode: mode & 0o7777, mtimeMs }, { uid: 1234, gid: 4321, mode: 0o640, mtimeMs: 1e12 });
    t.equal(await readFile(join(to, 'etc/app/größe, with a space'), 'utf8'), 'grün');
    t.ok((await readFile(join(to, 'etc/app/large'))).equals(Buffer.alloc(3_000_001, 'abcdefg')));
    t.equal(await readlink(join(to, 'etc/app/out')), '../../../../../tmp', 'a link is a link');
    t.equal((await readlink(join(to, 'etc/app/far'))).length, 154);
    t.equal((await lstat(join(to, 'conf'))).isSymbolicLink(), true);
    t.same(extracted.withoutSetId, ['/etc/app/passwd-tool'], 'a program of the guest’s root is none of ours');
    t.equal((await stat(join(to, 'etc/app/passwd-tool'))).mode & 0o7777, 0o755);
    t.equal((await stat(join(to, 'etc/app'))).mode & 0o7777, 0o751);
    const through = join(stage.directory, `through-${name}`);
    await stage.looked.extract(request, ['/conf/empty'], { to: through, force: false });
    t.equal((await stat(join(through, 'conf/empty'))).size, 0, 'links on the way are followed in the guest');
    t.same(await stage.looked.looks.list(), [], 'nothing is left of the look');
    t.equal((await stage.storage(name).verify(entry, { data: true })).ok, true, 'the backup is as it was');
  }
});

void t.test(
  'what is there is replaced only when that is asked for, and links are never followed',
  async (t) => {
    const stage = await lookStage(t);
    const entry = await storeVolumes(stage.storage('local'), stage.directory, {
      vda: await extImage(t, fillHost),
    });
    const [to, elsewhere] = [join(stage.directory, 'out'), join(stage.directory, 'elsewhere')];
    await mkdir(join(to, 'etc'), { recursive: true });
    await mkdir(elsewhere);
    await writeFile(join(to, 'etc/hosts'), 'mine');
    const take = (path: string, force: boolean) =>
      stage.looked.extract({ entry, signal }, ['/etc/app/empty', path], { to, force });
    await t.rejects(take('/etc/hosts', false), { code: 'FILE_EXISTS' });
    t.same(await readdir(join(to, 'etc')), ['hosts'], 'nothing was written');
    t.equal(await readFile(join(to, 'etc/hosts'), 'utf8'), 'mine');
    await take('/etc/hosts', true);
    t.equal(await readFile(join(to, 'etc/hosts'), 'utf8'), '127.0.0.1 localhost\n');
    await rm(join(to, 'etc'), { recursive: true });
    await symlink(elsewhere, join(to, 'etc'));
    await t.rejects(take('/etc/hosts', true), { code: 'FILE_EXISTS', message: /no directory/ });
    t.same(await readdir(elsewhere), []);
  },
);

void t.test('a file that is not in the backup is told with where it was looked for', async (t) => {
  const stage = await lookStage(t);
  const volumes = { vda: await extImage(t, fillHost), vdb: Buffer.alloc(65_536, 1) };
  const entry = await storeVolumes(stage.storage('local'), stage.directory, volumes);
  const to = join(stage.directory, 'out');
  const take = (path: string, about = {}) =>
    stage.looked.extract({ entry, signal, ...about }, [path], { to, force: false });
  await t.rejects(take('/etc/nothing'), {
    code: 'FILE_NOT_FOUND',
    message: '/etc/nothing is not in this backup: looked in vda',
  });
  await t.rejects(take('/etc/hosts/x'), { code: 'FILE_NOT_FOUND' });
  await t.rejects(take('/etc/hosts', { volumes: ['vdb'] }), { code: 'FILE_SYSTEM_UNSUPPORTED' });
  await t.rejects(take('/etc/hosts', { volumes: ['vdx'] }), {
    code: 'VOLUME_UNKNOWN',
    hint: 'it has vda, vdb',
  });
  await t.rejects(take('/etc/hosts', { partition: '3' }), { code: 'FILE_SYSTEM_UNSUPPORTED' });
  await t.rejects(stat(to), { code: 'ENOENT' });
  t.same(await stage.looked.looks.list(), []);
  const listed = await stage.looked.list({ entry, signal }, '/etc/app/out');
  t.match(listed, {
    fileSystem: 'vda',
    files: [{ name: 'out', kind: 'link', leadsTo: '../../../../../tmp' }],
  });
});

void t.test(
  'file systems are found in partitions; one must be chosen when several have the file',
  async (t) => {
    const stage = await lookStage(t);
    const [a, b] = [
      await extImage(t, fillHost),
      await extImage(t, (root) => writeFile(join(root, 'only-b'), 'b')),
    ];
    const mebibyte = 1024 * 1024;
    const mbr = Buffer.alloc(mebibyte);
    for (const [index, start] of [1, 17].entries()) {
      mbr.writeUInt8(0x83, 446 + 16 * index + 4);
      mbr.writeUInt32LE(start * 2048, 446 + 16 * index + 8);
      mbr.writeUInt32LE(16 * 2048, 446 + 16 * index + 12);
    }
    mbr.writeUInt16LE(0xaa55, 510);
    const entry = await storeVolumes(stage.storage('local'), stage.directory, {
      vda: Buffer.concat([mbr, a, b]),
    });
    t.match(await stage.looked.list({ entry, signal }, '/only-b'), { fileSystem: 'vda partition 2' });
    await t.rejects(stage.looked.list({ entry, signal }, '/'), {
      code: 'FILE_SYSTEM_UNCLEAR',
      message: '/: in vda partition 1 and in vda partition 2',
    });
    t.match(await stage.looked.list({ entry, signal, partition: '1' }, '/etc/hosts'), {
      files: [{ name: 'hosts' }],
    });
  },
);

void t.test('what the journal of a machine that ran holds is in its files', async (t) => {
  const stage = await lookStage(t);
  const image = await extImage(t, (root) => writeFile(join(root, 'log'), 'before'.padEnd(1024, '.')), {
    features: '^metadata_csum',
  });
  const place = join(stage.directory, 'image');
  await writeFile(place, image);
  const { stdout } = await execa('debugfs', ['-R', 'blocks /log', place]);
  await writeFile(join(stage.directory, 'new'), 'after'.padEnd(1024, '.'));
  const commands = ['jo', `jw -b ${stdout.trim()} ${join(stage.directory, 'new')}`, 'jc'];
  await execa('debugfs', ['-w', '-f', '-', place], { input: `${commands.join('\n')}\n` });
  const entry = await storeVolumes(stage.storage('local'), stage.directory, { vda: await readFile(place) });
  const to = join(stage.directory, 'out');
  await stage.looked.extract({ entry, signal }, ['/log'], { to, force: false });
  t.match(await readFile(join(to, 'log'), 'utf8'), /^after/);
  t.equal((await stage.storage('local').verify(entry, { data: true })).ok, true, 'the backup is as it was');
});

void t.test('a name of a guest that leads elsewhere is not written, and hides no other file', async (t) => {
  const stage = await lookStage(t);
  const image = await extImage(
    t,
    async (root) => {
      await mkdir(join(root, 'd'));
      await writeFile(join(root, 'd/AAAAAAAAAAAA'), 'evil');
      await writeFile(join(root, 'd/good'), 'good');
    },
    { features: '^metadata_csum,^dir_index' },
  );
  const at = image.indexOf('AAAAAAAAAAAA');
  image.write('../../../esc', at, 'latin1');
  const entry = await storeVolumes(stage.storage('local'), stage.directory, { vda: image });
  const to = join(stage.directory, 'a/b/out');
  const { extracted } = await stage.looked.extract({ entry, signal }, ['/d'], { to, force: false });
  t.match(extracted, { files: 1, unreadable: [/esc/] });
  t.same(await readdir(join(to, 'd')), ['good']);
  t.same(await readdir(join(stage.directory, 'a')), ['b']);
});

void t.test('a look that is ended in the middle leaves nothing mounted', async (t) => {
  const stage = await lookStage(t);
  const entry = await storeVolumes(stage.storage('local'), stage.directory, {
    vda: await extImage(t, fillHost),
  });
  const ending = new AbortController();
  ending.abort(new Error('enough'));
  const to = join(stage.directory, 'out');
  await t.rejects(stage.looked.extract({ entry, signal: ending.signal }, ['/etc'], { to, force: false }));
  t.same(
    (await mountPoints()).filter((path) => path.startsWith(stage.directory)),
    [],
  );
  t.same(await stage.looked.looks.list(), []);
});

void t.test(
  'a backup that is being read is not deleted, until its reader has ended or was killed',
  async (t) => {
    const stage = await lookStage(t);
    for (const name of storageNames) {
      const entry = await storeVolumes(stage.storage(name), stage.directory, {
        vda: Buffer.alloc(65_536, 1),
      });
      const other = stage.other();
      await t.rejects(
        stage.looked.whileKept(entry, async () => {
          await t.rejects(other.requireUnused(entry), { code: 'MOUNT_BUSY' }, name);
          throw new Error('in the middle');
        }),
        { message: 'in the middle' },
      );
      await other.requireUnused(entry);

      const { child, ended } = await heldByChild(stage, entry);
      await t.rejects(other.requireUnused(entry), {
        code: 'MOUNT_BUSY',
        message: new RegExp(`${child.pid}`),
      });
      child.kill('SIGKILL');
      await ended;
      await other.requireUnused(entry);
      const [abandoned, ...others] = await other.looks.abandoned();
      t.same(others, []);
      if (abandoned !== undefined) await other.looks.end(abandoned);
      t.same(await other.looks.list(), [], 'the record of the dead one can be taken away');

      await stage.storage(name).delete(entry);
      await t.rejects(
        stage.looked.whileKept(entry, () => Promise.resolve()),
        { code: 'BACKUP_NOT_FOUND' },
        'nor is one read that was deleted before',
      );
      t.same(await other.looks.list(), []);
    }
  },
);

/** A process that reads a backup until it is killed. */
async function heldByChild({ directory }: LookStage, entry: BackupEntry) {
  const module = new URL('restore/looks.ts', import.meta.url);
  const script = `import { Looks } from '${module.href}';
    await new Looks(process.argv[1]).hold(JSON.parse(process.argv[2]));
    console.log('held');
    setInterval(() => undefined, 1000);`;
  const args = ['--input-type=module', '-e', script, join(directory, 'run'), JSON.stringify(entry)];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(child, 'exit');
  await once(child.stdout, 'data');
  return { child, ended };
}

void t.test('where libguestfs is needed and not installed, that is what is told', async (t) => {
  const stage = await lookStage(t);
  const ext = await extImage(t, fillHost);
  const mebibyte = 1024 * 1024;
  const xfs = Buffer.alloc(mebibyte);
  xfs.write('XFSB');
  const disk = Buffer.concat([Buffer.alloc(mebibyte), ext, xfs]);
  for (const [index, [start, sectors]] of [
    [2048, ext.length / 512],
    [2048 + ext.length / 512, 2048],
  ].entries()) {
    disk.writeUInt8(0x83, 446 + 16 * index + 4);
    disk.writeUInt32LE(start ?? 0, 446 + 16 * index + 8);
    disk.writeUInt32LE(sectors ?? 0, 446 + 16 * index + 12);
  }
  disk.writeUInt16LE(0xaa55, 510);
  const entry = await storeVolumes(stage.storage('local'), stage.directory, { vda: disk });
  const looked = stage.other(() => Promise.resolve(null));
  const hint = /^apt-get install .*guestfish/;
  t.match(await looked.list({ entry, signal }, '/etc/hosts'), { fileSystem: 'vda partition 1' });
  await t.rejects(looked.list({ entry, signal }, '/srv'), {
    code: 'FILE_NOT_FOUND',
    message: /looked in vda partition 1; not in vda partition 2: xfs, which needs libguestfs$/,
    hint,
  });
  await t.rejects(looked.list({ entry, signal, partition: '2' }, '/srv'), {
    code: 'FILE_SYSTEM_UNSUPPORTED',
    message: /^vda partition 2: xfs: only libguestfs reads that, which is not installed$/,
    hint,
  });
  t.same(await stage.looked.looks.list(), []);
});
