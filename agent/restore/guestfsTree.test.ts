import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { RestoreError } from './errors.ts';
import { GuestfsTree } from './guestfsTree.ts';
import { findGuestFile } from './guestTree.ts';

type Answers = Readonly<Record<string, string | Buffer>>;

/** A tree over answers of guestfish, by command and arguments. */
async function treeOf(test: Test, answers: Answers) {
  const directory = await mkdtemp(join(tmpdir(), 'sp-names-'));
  const path = join(directory, 'names');
  const handle = await open(path, 'wx+');
  test.teardown(async () => {
    await handle.close();
    await rm(directory, { recursive: true });
  });
  const asked: string[] = [];
  const ask = async (command: string, args: readonly string[]): Promise<Buffer> => {
    const words = [command, ...args.filter((arg) => arg !== path)].join(' ');
    asked.push(words);
    const answer = answers[words];
    if (answer === undefined)
      throw new RestoreError('FILE_UNREADABLE', `${words}: No such file or directory`);
    if (command !== 'ls0') return Buffer.from(answer);
    await writeFile(path, answer, 'latin1');
    return Buffer.alloc(0);
  };
  return { tree: new GuestfsTree({ ask }, '/1', { path, handle }), asked };
}

function statOf(mode: number, about: Readonly<Record<string, number | string>> = {}): string {
  const fields = {
    dev: 1,
    ino: 2,
    mode,
    nlink: 1,
    uid: 0,
    gid: 0,
    size: 0,
    mtime_sec: 1_600_000_000,
    ...about,
  };
  return Object.entries(fields)
    .map(([name, value]) => `st_${name}: ${value}\n`)
    .join('');
}
const [folder, file, link] = [0o040755, 0o100644, 0o120777];

void t.test('names are bytes, also with newlines, and each is asked for by its own path', async (t) => {
  const { tree } = await treeOf(t, {
    'lstatns /1': statOf(folder),
    'ls0 /1': 'a\nb\0.\0..\0\xff\0lost\0',
    'lstatns /1/a\nb': statOf(file, { ino: 3, uid: 1000, gid: 4_294_967_294, size: 5 }),
    'lstatns /1/\xff': statOf(link, { ino: 4 }),
    'readlink /1/\xff': '/etc\n\n',
  });
  const listed = await tree.list(await tree.root());
  t.match(listed, [
    { name: 'a\nb', kind: 'file', uid: 1000, gid: 4_294_967_294, mode: 0o644, sizeBytes: 5 },
    { name: '\xff', kind: 'link' },
    { name: 'lost', kind: 'nameless' },
  ]);
  const [first, second, third] = listed;
  if (first === undefined || second === undefined || third === undefined) throw new Error('not listed');
  t.same(await tree.details(first), { modifiedAt: new Date(1_600_000_000_000), leadsTo: null });
  t.same((await tree.details(second)).leadsTo, '/etc\n', 'only the last newline is not of the target');
  await t.rejects(tree.details(third), { code: 'FILE_UNREADABLE' });
});

void t.test('a path is followed name by name, and links lead within the file system only', async (t) => {
  const { tree, asked } = await treeOf(t, {
    'lstatns /1': statOf(folder),
    'lstatns /1/up': statOf(link, { ino: 3 }),
    'readlink /1/up': '/../../etc\n',
    'lstatns /1/etc': statOf(folder, { ino: 4 }),
    'lstatns /1/etc/hosts': statOf(file, { ino: 5 }),
  });
  t.match(await findGuestFile(tree, '/up/hosts'), { name: 'hosts' });
  t.equal(await findGuestFile(tree, '/etc/none'), null);
  t.notOk(
    asked.some((words) => words.includes('..') || words.includes('up/')),
    'no path with a link in it is asked for',
  );
});

void t.test('the same inode in two subvolumes is two directories, and one directory is one', async (t) => {
  const { tree } = await treeOf(t, {
    'lstatns /1': statOf(folder, { dev: 1, ino: 256 }),
    'ls0 /1': 'a\0b\0again\0',
    'lstatns /1/a': statOf(folder, { dev: 2, ino: 256 }),
    'lstatns /1/b': statOf(folder, { dev: 3, ino: 256 }),
    'lstatns /1/again': statOf(folder, { dev: 1, ino: 256 }),
  });
  const root = await tree.root();
  const [a, b, again] = (await tree.list(root)).map(({ inode }) => inode);
  t.equal(new Set([root.inode, a, b]).size, 3);
  t.equal(again, root.inode);
});

void t.test('bytes are read in pieces up to the size, and less than that is told', async (t) => {
  const piece = 2 * 1024 * 1024;
  const { tree } = await treeOf(t, {
    'lstatns /1/a': statOf(file, { size: piece + 3 }),
    [`pread /1/a ${piece} 0`]: Buffer.alloc(piece, 'a'),
    [`pread /1/a 3 ${piece}`]: 'end',
    'lstatns /1/b': statOf(file, { size: 4 }),
    'pread /1/b 4 0': 'shr',
    'pread /1/b 1 3': '',
    'lstatns /1': statOf(folder),
  });
  const read = async (name: string): Promise<Buffer> => {
    const found = await tree.find(await tree.root(), name);
    if (found === null) throw new Error(name);
    const pieces: Buffer[] = [];
    for await (const one of tree.content(found)) pieces.push(one);
    return Buffer.concat(pieces);
  };
  t.ok((await read('a')).equals(Buffer.concat([Buffer.alloc(piece, 'a'), Buffer.from('end')])));
  await t.rejects(read('b'), { code: 'FILE_UNREADABLE', message: /3 of 4 bytes/ });
});

void t.test('what a guest says of a file that no file can be is not believed', async (t) => {
  const { tree } = await treeOf(t, {
    'lstatns /1': statOf(folder),
    'lstatns /1/negative': statOf(file, { size: -1 }),
    'lstatns /1/huge': statOf(file, { size: '99999999999999999999' }),
    'lstatns /1/nothing': 'no stat\n',
    'lstatns /1/late': statOf(file, { mtime_sec: '9223372036854775807' }),
    'lstatns /1/device': statOf(0o060600),
  });
  const root = await tree.root();
  for (const name of ['negative', 'huge', 'nothing'])
    await t.rejects(tree.find(root, name), { code: 'FILE_UNREADABLE' }, name);
  const late = await tree.find(root, 'late');
  if (late === null) throw new Error('late');
  t.same((await tree.details(late)).modifiedAt, new Date(0));
  t.match(await tree.find(root, 'device'), { kind: 'special' });
});
