import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, rename, rm, stat, statfs, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { FaultyFiles } from '../../test/sim/faultyFiles.ts';
import { StorageError } from '../errors.ts';
import { listAll } from './backend.ts';
import { FileBackend } from './fileBackend.ts';

void t.test(
  'a directory that is not there, as when it is not mounted, is an error and never an empty store',
  async (t) => {
    const root = join(t.testdir(), 'store');
    const backend = new FileBackend(root);
    const unreachable = { code: 'STORAGE_UNREACHABLE', hint: /findmnt/ };
    await t.rejects(backend.create('a/b', [Buffer.from('x')]), unreachable);
    await t.rejects(backend.read('a/b'), unreachable);
    await t.rejects(backend.size('a/b'), unreachable);
    await t.rejects(backend.delete('a/b'), unreachable);
    await t.rejects(listAll(backend, 'a/'), unreachable);
    await t.rejects(stat(root), { code: 'ENOENT' }, 'and none comes into being');

    await backend.prepare();
    await backend.create('a/b', [Buffer.from('x')]);
    await rename(root, `${root}.away`);
    await t.rejects(backend.create('a/c', [Buffer.from('x')]), unreachable, 'nor later');
    await t.rejects(listAll(backend, 'a/'), unreachable);
  },
);

void t.test('files are for their owner to read only, and nothing temporary stays', async (t) => {
  const root = t.testdir();
  const backend = new FileBackend(root);
  await backend.create('keys/a', [Buffer.from('x')]);
  await backend.create('keys/a', [Buffer.from('y')]);
  t.equal((await stat(join(root, 'keys/a'))).mode & 0o777, 0o400);
  t.same(await readdir(join(root, 'tmp')), []);
});

void t.test('a file system without hard links is named as that, whatever it says itself', async (t) => {
  const root = t.testdir();
  using seen = new FaultyFiles(root);
  await seen.run(null, [], async () => new FileBackend(root).create('a/seen', [Buffer.from('x')]));
  const link = seen.calls.findIndex(({ operation }) => operation === 'link');
  for (const errno of ['EPERM', 'ENOTSUP', 'ENOSYS', 'EMLINK']) {
    using files = new FaultyFiles(root);
    const create = async (): Promise<unknown> => new FileBackend(root).create('a/b', [Buffer.from('x')]);
    await t.rejects(files.run(link, [{ errno, when: 'before' }], create), {
      code: 'STORAGE_FAILED',
      hint: /hard links/,
    });
  }
});

void t.test('what is large leaves room for what makes room', async (t) => {
  const root = t.testdir();
  const reserve = { notForPrefix: 'packs/', bytesMax: Number.MAX_SAFE_INTEGER, hint: 'make room' };
  const backend = new FileBackend(root, { reserve });
  const { blocks, bsize, bavail } = await statfs(root);
  // As on a file system that is full but for the reserve: no memory is needed to ask for so much.
  const large = { length: bavail * bsize - Math.floor((blocks * bsize) / 100) + 2 ** 30 };
  const parts = [Object.setPrototypeOf(large, Buffer.prototype)];
  await t.rejects(backend.create('packs/aa/b', parts), { code: 'STORAGE_FULL', hint: 'make room' });
  t.same(await readdir(root), [], 'before anything is written');
  t.equal(await backend.create('packs/aa/b', [Buffer.from('small')]), 'created');
  t.equal(await backend.create('deletions/a', [Buffer.from('small')]), 'created');
});

void t.test('what is on its way at the same time leaves that room, too', async (t) => {
  const root = t.testdir();
  const reserve = { notForPrefix: 'packs/', bytesMax: Number.MAX_SAFE_INTEGER, hint: 'make room' };
  const backend = new FileBackend(root, { reserve });
  const { blocks, bsize, bavail } = await statfs(root);
  // Two thirds of the room: one finds it, and fails when it comes to its bytes, of which there are none.
  const large = { length: Math.floor(((bavail * bsize - (blocks * bsize) / 100) * 2) / 3) };
  const create = async (name: string): Promise<unknown> =>
    backend.create(name, [Object.setPrototypeOf(large, Buffer.prototype)]).catch((error: unknown) => error);
  const both = await Promise.all([create('packs/aa/a'), create('packs/aa/b')]);
  const full = (outcome: unknown): boolean =>
    outcome instanceof StorageError && outcome.code === 'STORAGE_FULL';
  t.equal(both.filter(full).length, 1);
  t.notOk(full(await create('packs/aa/c')), 'what failed takes no room');
});

void t.test('what is no object of ours is not listed, and a link is not followed', async (t) => {
  const root = t.testdir();
  const backend = new FileBackend(root);
  await mkdir(join(root, 'packs'));
  await writeFile(join(root, 'packs', '.nfs0001'), '');
  await writeFile(join(root, 'packs', 'UPPER'), '');
  await symlink('/etc/hostname', join(root, 'packs', 'link'));
  t.same(await listAll(backend, 'packs/'), []);
  await t.rejects(backend.read('packs/link'), { code: 'STORAGE_FAILED' });
});

void t.test('only leftovers that are old enough are removed', async (t) => {
  const root = t.testdir({ tmp: { old: 'x' } });
  const backend = new FileBackend(root);
  await backend.create('a/b', [Buffer.from('x')]);
  t.equal(await backend.removeLeftovers(new Date(0)), 0);
  t.equal(await backend.removeLeftovers(new Date(Date.now() + 1000)), 1);
  t.same(await readdir(join(root, 'tmp')), []);
  t.equal(String(await backend.read('a/b')), 'x');
});

/** Creates objects, each of one repeated byte, until it is killed; says when the first one is done. */
const creator = `
  const { FileBackend } = await import(process.argv[1]);
  const backend = new FileBackend(process.argv[2]);
  for (let n = 0; ; n++) {
    await backend.create('packs/' + n, [Buffer.alloc(400000, n % 256)]);
    process.stdout.write(n + '\\n');
  }`;

void t.test(
  'a process that is killed leaves whole objects under their names, and all that it was told',
  async (t) => {
    const module = join(import.meta.dirname, 'fileBackend.ts');
    for (let round = 0; round < 6; round++) {
      const root = join(t.testdir(), String(round));
      await new FileBackend(root).prepare();
      const child = spawn(process.execPath, ['--input-type=module', '-e', creator, module, root]);
      let said = '';
      child.stdout.on('data', (data: Buffer) => {
        said += data.toString();
        if (said.split('\n').length > 3 + round) child.kill('SIGKILL');
      });
      await once(child, 'close');
      const told = said.split('\n').filter(Boolean).map(Number);
      const backend = new FileBackend(root);
      for await (const { name, sizeBytes } of backend.list('packs/')) {
        const number = Number(name.slice('packs/'.length));
        t.equal(sizeBytes, 400_000);
        t.ok((await backend.read(name))?.equals(Buffer.alloc(400_000, number % 256)), name);
      }
      for (const number of told)
        t.equal(await backend.size(`packs/${number}`), 400_000, `${number} was acknowledged`);
      t.ok(told.length >= 3);
      await rm(root, { recursive: true });
    }
  },
);
