import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, lstat, mkdir, readdir, readFile, readlink, rm, symlink, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import {
  extImage,
  type LookStage,
  lookStage,
  storageNames,
  storeVolumes,
} from '../../agent/lookedFixture.ts';
import { mountPoints } from '../../agent/restore/fuse.ts';
import { processesWith } from '../../agent/restore/processes.ts';
import { guestKernel } from '../lab/guestImage.ts';
import { btrfsImage, lvmImage, partitioned, xfsImage } from '../lab/guestFileSystems.ts';

/*
 * Files of guests that only libguestfs reads, by the command. Each look starts an appliance, here mostly without KVM.
 */

const command = resolve(import.meta.dirname, '../../bin/stillpoint');
/** Shared by the looks of this file: it is made once. */
let appliances: string | null = null;

/** A stage whose directories libguestfs, which runs as nobody, can pass through. */
async function guestStage(test: Test) {
  const stage = await lookStage(test);
  await chmod(stage.directory, 0o711);
  const { kernel, modules } = await guestKernel();
  const env = { SUPERMIN_KERNEL: kernel, SUPERMIN_MODULES: modules };
  const kept = join(stage.directory, 'state', 'appliance');
  if (appliances === null) {
    appliances = join(t.testdirName, 'appliance');
    await mkdir(appliances, { recursive: true });
    t.teardown(() => rm(appliances ?? '', { recursive: true, force: true }));
  }
  await symlink(appliances, kept);
  const argsOf = (args: readonly string[]) => [...args, '--config', stage.configFile];
  const run = (...args: readonly string[]) =>
    execa(command, argsOf(args), { reject: false, timeout: 400_000, stdin: 'ignore', env });
  const start = (...args: readonly string[]) =>
    spawn(command, argsOf(args), { stdio: 'ignore', env: { ...process.env, ...env } });
  return { ...stage, run, start };
}

/** What is left of a stage outside its directory. */
async function leftOf({ directory }: LookStage) {
  const mounts = (await mountPoints()).filter((path) => path.startsWith(directory));
  const processes = await processesWith((args) => args.some((arg) => arg.includes(`${directory}/run`)));
  return { mounts, processes };
}
const nothing = { mounts: [], processes: [] };

const nasty = ['a"\n!touch broken', 'b" | sh', '-', '~root', "it's \\x41", '\u00fc €'];

async function fill(root: string): Promise<void> {
  await mkdir(join(root, 'etc'));
  await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost\n');
  await symlink('../../../etc/passwd', join(root, 'etc/out'));
  await mkdir(join(root, 'names'));
  for (const name of nasty) await writeFile(join(root, 'names', name), name);
  await writeFile(join(root, 'large'), Buffer.alloc(5 * 1024 * 1024, 'abcdefg'));
}

void t.test(
  'XFS on a partition is read from both kinds of storages, with what only its log holds',
  async (t) => {
    const stage = await guestStage(t);
    const boot = await extImage(t, (root) => writeFile(join(root, 'vmlinuz'), 'kernel'));
    const disk = partitioned(boot, await xfsImage(t, fill));
    const made = new Set<number>();
    for (const name of storageNames) {
      const { id } = await storeVolumes(stage.storage(name), stage.directory, { vda: disk });
      const to = join(stage.directory, `out-${name}`);
      const restored = await stage.run(
        'restore',
        id ?? '',
        '--files',
        '/etc',
        '/names',
        '/large',
        '--to',
        to,
      );
      t.match(
        restored,
        { exitCode: 0, stdout: /^8 files .* 2 directories and 1 links of vda partition 2 as/ },
        name,
      );
      t.equal(await readFile(join(to, 'etc/hosts'), 'utf8'), '127.0.0.1 localhost\n');
      t.equal(await readlink(join(to, 'etc/out')), '../../../etc/passwd');
      t.same((await readdir(join(to, 'names'))).toSorted(), nasty.toSorted());
      for (const one of nasty) t.equal(await readFile(join(to, 'names', one), 'utf8'), one);
      t.ok((await readFile(join(to, 'large'))).equals(Buffer.alloc(5 * 1024 * 1024, 'abcdefg')));
      t.equal((await lstat(join(to, 'etc/hosts'))).mode & 0o777, 0o644);
      t.match(await stage.storage(name).verify(await stage.storage(name).find(id ?? ''), { data: true }), {
        ok: true,
      });
      t.same(await leftOf(stage), nothing, name);
      made.add((await lstat(join(appliances ?? '', 'appliance.d', 'root'))).ino);
    }
    t.equal(made.size, 1, 'the appliance is made once');
  },
);

void t.test('ext4 on LVM is read from both kinds of storages, and chosen by its name', async (t) => {
  const stage = await guestStage(t);
  const disk = partitioned(await lvmImage(t, 'guestvg/root-lv', await extImage(t, fill)));
  for (const name of storageNames) {
    const { id } = await storeVolumes(stage.storage(name), stage.directory, { vda: disk });
    const to = join(stage.directory, `out-${name}`);
    const place = name === 'local' ? [] : ['--partition', 'guestvg/root-lv'];
    const restored = await stage.run('restore', id ?? '', '--files', '/etc/hosts', ...place, '--to', to);
    t.match(restored, { exitCode: 0, stdout: /^1 files .* of volume guestvg\/root-lv as/ }, name);
    t.equal(await readFile(join(to, 'etc/hosts'), 'utf8'), '127.0.0.1 localhost\n');
    t.same(await leftOf(stage), nothing, name);
  }
});

void t.test('btrfs is listed; what is interrupted or killed leaves nothing', async (t) => {
  const stage = await guestStage(t);
  const { id } = await storeVolumes(stage.storage('local'), stage.directory, {
    vda: await btrfsImage(t, fill),
  });
  const appliance = async (): Promise<boolean> =>
    (await processesWith((args) => args.some((arg) => arg.includes(`${stage.directory}/run`)))).length > 2;
  for (const end of ['SIGINT', 'SIGKILL'] as const) {
    const child = stage.start('files', id ?? '', '/etc');
    const ended = once(child, 'exit');
    while (!(await appliance())) await new Promise((done) => setImmediate(done));
    child.kill(end);
    await ended;
    if (end === 'SIGINT') t.same(await leftOf(stage), nothing, end);
  }
  const listed = await stage.run('files', id ?? '', '/etc', '--json');
  t.match(listed, { exitCode: 0, stderr: /killed command/ });
  t.match(JSON.parse(listed.stdout), {
    fileSystem: 'vda',
    files: [
      { name: 'out', leadsTo: '../../../etc/passwd' },
      { name: 'hosts', kind: 'file' },
    ],
  });
  t.same(await leftOf(stage), nothing);
});
