import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import {
  extImage,
  type LookStage,
  lookStage,
  storageNames,
  storeVolumes,
} from '../../agent/lookedFixture.ts';
import { mountPoints } from '../../agent/restore/fuse.ts';
import { processesWith } from '../../agent/restore/processes.ts';

/*
 * Looking into backups by the command, without any machine: the volumes as files, and the files of a guest.
 */

const command = resolve(import.meta.dirname, '../../bin/stillpoint');

function run({ configFile }: LookStage, ...args: readonly string[]) {
  return execa(command, [...args, '--config', configFile], {
    reject: false,
    timeout: 120_000,
    stdin: 'ignore',
  });
}

/** Starts `storage mount`, and waits until it says what it has mounted. */
async function mount({ configFile }: LookStage, backup: string, directory: string) {
  const args = ['storage', 'mount', backup, directory, '--config', configFile];
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(child, 'exit');
  const said = await Promise.race([once(child.stdout, 'data'), ended]);
  return { child, ended, said: String(said[0]) };
}

/** What is left of a stage outside its directory. */
async function leftOf({ directory }: LookStage) {
  const mounts = (await mountPoints()).filter((path) => path.startsWith(directory));
  const servers = await processesWith((args) => args.some((arg) => arg.startsWith(`${directory}/run`)));
  return { mounts, servers };
}
const nothing = { mounts: [], servers: [] };

async function fill(root: string): Promise<void> {
  await mkdir(join(root, 'etc'));
  await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost\n');
  await symlink('../../../etc/passwd', join(root, 'etc/out'));
}

void t.test(
  'storage mount gives volumes as files until it is interrupted, or ended from elsewhere',
  async (t) => {
    const stage = await lookStage(t);
    const image = await extImage(t, fill);
    for (const name of storageNames) {
      const { id } = await storeVolumes(stage.storage(name), stage.directory, { vda: image });
      const directory = join(stage.directory, 'mnt');
      for (const end of ['SIGINT', 'unmount']) {
        const { child, ended, said } = await mount(stage, id ?? '', directory);
        t.match(said, /read-only/);
        t.ok((await readFile(join(directory, 'vda.raw'))).equals(image), `${name}: it is what was stored`);
        if (end === 'SIGINT') child.kill('SIGINT');
        else t.match(await run(stage, 'storage', 'unmount', directory), { exitCode: 0 });
        t.same(await ended, [0, null], end);
        await t.rejects(stat(directory), { code: 'ENOENT' });
        t.same(await leftOf(stage), nothing, end);
      }
      t.match(await run(stage, 'storage', 'unmount', directory), { exitCode: 4, stderr: /^MOUNT_NOT_FOUND/ });
    }
  },
);

void t.test(
  'what a killed mount has left is taken away by unmount, and by the next command of its kind',
  async (t) => {
    const stage = await lookStage(t);
    const image = await extImage(t, fill);
    const { id } = await storeVolumes(stage.storage('vault'), stage.directory, { vda: image });
    const directory = join(stage.directory, 'mnt');
    const kill = async (): Promise<void> => {
      const { child, ended } = await mount(stage, id ?? '', directory);
      child.kill('SIGKILL');
      await ended;
      t.ok((await readFile(join(directory, 'vda.raw'))).equals(image), 'who reads it is not cut off');
    };
    await kill();
    t.match(await run(stage, 'storage', 'unmount', directory), { exitCode: 0 });
    t.same(await leftOf(stage), nothing);
    await kill();
    t.match(await run(stage, 'files', id ?? '', '/etc'), { exitCode: 0, stderr: /killed command/ });
    t.same(await leftOf(stage), nothing);
    await kill();
    // Also where the servers died with it, as when the host runs out of memory.
    for (const pid of (await leftOf(stage)).servers) process.kill(pid, 'SIGKILL');
    t.match(await run(stage, 'storage', 'unmount', directory), { exitCode: 0 });
    t.same(await leftOf(stage), nothing);
    await t.rejects(stat(directory), { code: 'ENOENT' });
  },
);

void t.test('a mount that somebody uses is not torn away', async (t) => {
  const stage = await lookStage(t);
  const { id } = await storeVolumes(stage.storage('local'), stage.directory, {
    vda: await extImage(t, fill),
  });
  await mkdir(join(stage.directory, 'real'));
  await symlink('real', join(stage.directory, 'link'));
  const directory = join(stage.directory, 'link', 'mnt');
  const { child, ended } = await mount(stage, id ?? '', directory);
  const reader = await open(join(directory, 'vda.raw'));
  child.kill('SIGTERM');
  t.same(await ended, [7, null]);
  t.equal((await reader.read(Buffer.alloc(512), 0, 512, 0)).bytesRead, 512);
  t.match(await run(stage, 'storage', 'unmount', directory), { exitCode: 7, stderr: /^MOUNT_BUSY/ });
  await reader.close();
  t.match(
    await run(stage, 'storage', 'unmount', directory),
    { exitCode: 0 },
    'also by a path with a link in it',
  );
  t.same(await leftOf(stage), nothing);
});

void t.test('what a killed restore --files has left goes with the next one', async (t) => {
  const stage = await lookStage(t);
  const { id } = await storeVolumes(stage.storage('vault'), stage.directory, {
    vda: await extImage(t, fill),
  });
  const to = join(stage.directory, 'out');
  const args = ['restore', id ?? '', '--files', '/etc', '--to', to, '--config', stage.configFile];
  const child = spawn(command, args, { stdio: 'ignore' });
  const ended = once(child, 'exit');
  while ((await leftOf(stage)).mounts.length === 0) await new Promise((done) => setImmediate(done));
  child.kill('SIGKILL');
  await ended;
  await rm(to, { recursive: true, force: true });
  t.match(await run(stage, 'restore', id ?? '', '--files', '/etc', '--to', to, '--yes'), {
    exitCode: 0,
    stderr: /killed command/,
  });
  t.same(await leftOf(stage), nothing);
});

void t.test('restore --files takes files out, and says what stands in its way', async (t) => {
  const stage = await lookStage(t);
  const image = await extImage(t, fill);
  for (const name of storageNames) {
    const { id } = await storeVolumes(stage.storage(name), stage.directory, { vda: image });
    const to = join(stage.directory, `out-${name}`);
    const restore = (...paths: readonly string[]) =>
      run(stage, 'restore', id ?? '', '--files', ...paths, '--to', to);
    t.match(await restore('/etc/nothing'), {
      exitCode: 4,
      stderr: /^FILE_NOT_FOUND: \/etc\/nothing .*\nhint: stillpoint files/,
    });
    t.match(await restore('/etc/hosts', '/etc/out'), { exitCode: 0, stdout: /^1 files .* 1 links of vda/ });
    t.same(await readdir(join(to, 'etc')), ['hosts', 'out']);
    t.equal(await readFile(join(to, 'etc/hosts'), 'utf8'), '127.0.0.1 localhost\n');
    t.match(await restore('/etc'), { exitCode: 8, stderr: /^FILE_EXISTS/ });
    t.match(await run(stage, 'restore', id ?? '', '--files', '/etc', '--to', to, '--force', '--json'), {
      exitCode: 0,
      stdout: /"files":1/,
    });
    const listed = await run(stage, 'files', id ?? '', '/etc', '--json');
    t.match(JSON.parse(listed.stdout), {
      fileSystem: 'vda',
      files: [
        { name: 'hosts', kind: 'file' },
        { name: 'out', leadsTo: '../../../etc/passwd' },
      ],
    });
    t.same(await leftOf(stage), nothing);
  }
});
