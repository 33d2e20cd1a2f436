import { link, mkdir, readdir, readFile, rmdir, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { isErrno } from './errors.ts';
import t from 'tap';
import {
  exists,
  freeBytes,
  isBelow,
  isTemporaryName,
  makeDirectoryDurable,
  readOwnership,
  removeTree,
  renameDurable,
  sameFileSystem,
  writeFileDurable,
} from './files.ts';

void t.test(
  'a durable write replaces the file whole, with the mode asked for, and leaves nothing else',
  async (t) => {
    const directory = t.testdir({ name: 'old' });
    const path = join(directory, 'name');
    await writeFileDurable(path, 'new', { mode: 0o640 });
    t.equal(await readFile(path, 'utf8'), 'new');
    t.equal((await stat(path)).mode & 0o7777, 0o640);
    t.same(await readdir(directory), ['name']);
  },
);

void t.test('a durable write that fails leaves the old file and no temporary one', async (t) => {
  const directory = t.testdir({ taken: { inside: 'x' } });
  await t.rejects(writeFileDurable(join(directory, 'taken'), 'new'), { code: 'EISDIR' });
  t.same(await readdir(directory), ['taken']);
});

void t.test('temporary names are recognised and nothing else is', (t) => {
  t.ok(isTemporaryName('.manifest.json.0123456789abcdef.tmp'));
  for (const name of ['manifest.json', '.hidden', '.x.tmp', 'x.0123456789abcdef.tmp'])
    t.notOk(isTemporaryName(name));
  t.end();
});

void t.test(
  'directories are created with all their parents and their mode, and again without harm',
  async (t) => {
    const root = t.testdir({});
    const path = join(root, 'a', 'b', 'c');
    await makeDirectoryDurable(path, 0o711);
    await makeDirectoryDurable(path, 0o700);
    t.equal((await readOwnership(path)).mode, 0o711, 'what is there keeps its mode');
  },
);

void t.test('a file in the way of a directory is an error', async (t) => {
  const root = t.testdir({ file: '' });
  await t.rejects(makeDirectoryDurable(join(root, 'file')), { code: 'ENOTDIR' });
  await t.rejects(makeDirectoryDurable(join(root, 'file', 'below')), { code: 'ENOTDIR' });
});

void t.test('a rename does what its name says', async (t) => {
  const root = t.testdir({ a: { file: 'x' }, b: {} });
  await renameDurable(join(root, 'a', 'file'), join(root, 'b', 'file'));
  t.notOk(await exists(join(root, 'a', 'file')));
  t.ok(await exists(join(root, 'b', 'file')));
});

void t.test('a dangling link exists', async (t) => {
  const root = t.testdir({});
  await symlink('/nowhere/at/all', join(root, 'link'));
  t.ok(await exists(join(root, 'link')));
});

void t.test('a rename is promised inside one file system, and not to another one', async (t) => {
  const root = t.testdir({ file: '' });
  t.ok(await sameFileSystem(join(root, 'file'), join(root, 'not', 'there', 'yet')));
  t.notOk(await sameFileSystem(root, '/proc/self'));
  t.ok((await freeBytes(join(root, 'not', 'there'))) > 0);
});

void t.test('a tree outside the root is never removed, not even through a link', async (t) => {
  const root = t.testdir({ inside: { tree: { file: '' } }, outside: { tree: { file: '' } } });
  const inside = join(root, 'inside');
  await symlink(join(root, 'outside'), join(inside, 'link'));
  await t.rejects(removeTree(join(inside, '..', 'outside'), { root: inside }));
  await t.rejects(removeTree(join(inside, 'link', 'tree'), { root: inside }));
  await t.rejects(removeTree(inside, { root: inside }));
  t.ok(await exists(join(root, 'outside', 'tree', 'file')));

  await symlink(join(root, 'outside', 'tree'), join(inside, 'tree', 'link'));
  await removeTree(join(inside, 'tree'), { root: inside });
  await removeTree(join(inside, 'tree'), { root: inside });
  t.notOk(await exists(join(inside, 'tree')));
  t.ok(await exists(join(root, 'outside', 'tree', 'file')), 'the link was removed, not what it leads to');
});

void t.test('isBelow compares whole names', (t) => {
  t.ok(isBelow('/a', '/a/b'));
  t.ok(isBelow('/a', '/a/..b'));
  for (const path of ['/a', '/', '/ab', '/a/../b']) t.notOk(isBelow('/a', path), path);
  t.end();
});

void t.test(
  'two bind mounts of one file system are not taken for one place, but for one device',
  { skip: process.getuid?.() !== 0 && 'needs root' },
  async (t) => {
    const root = t.testdir({ a: {}, b: {} });
    await mkdir(join(root, 'a', 'x'));
    await writeFile(join(root, 'a', 'file'), '');
    await link(join(root, 'a', 'file'), join(root, 'b', 'file'));
    const code = `import { sameDevice, sameFileSystem } from ${JSON.stringify(join(import.meta.dirname, 'files.ts'))};
    const places = ${JSON.stringify([join(root, 'a'), join(root, 'b')])};
    process.stdout.write(JSON.stringify([await sameFileSystem(...places), await sameDevice(...places)]));`;
    const script = 'mount --bind "$1" "$1" && exec "$2" --input-type=module -e "$3"';
    const { stdout } = await execa(
      'unshare',
      ['-m', '--propagation', 'private', 'sh', '-c', script, 'sh', join(root, 'b'), process.execPath, code],
      { timeout: 30_000 },
    );
    t.equal(stdout, '[false,true]', 'no rename goes from one to the other, and both go with one disk');
    t.ok(await sameFileSystem(join(root, 'a'), join(root, 'b')), 'outside of that namespace they are one');
  },
);

void t.test(
  "jobs that share a directory and remove it when it is empty do not get in each other's way",
  async (t) => {
    const root = t.testdir({});
    const shared = join(root, 'shared');
    const one = async (name: string): Promise<void> => {
      for (let round = 0; round < 100; round += 1) {
        const own = join(shared, name);
        await makeDirectoryDurable(own);
        await removeTree(own, { root: shared });
        await rmdir(shared).catch((error: unknown) => {
          if (!isErrno(error, 'ENOTEMPTY') && !isErrno(error, 'ENOENT')) throw error;
        });
      }
    };
    await t.resolves(Promise.all(['a', 'b', 'c', 'd'].map(one)));
  },
);
