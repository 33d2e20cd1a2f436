import { chmod, chown, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { FaultyFiles } from '../../test/sim/faultyFiles.ts';
import { FileExtraction } from './fileExtraction.ts';
import type { GuestFile, GuestFileKind, GuestTree } from './guestTree.ts';

/** What a guest claims to have: bytes of a file, where a link leads, what is in a directory. */
type Claim = Buffer | string | ReadonlyMap<string, Claim>;

/** A guest that claims whatever the test wants. A claim that is there twice is one inode. */
class ClaimedTree implements GuestTree {
  readonly #claims: Claim[] = [];
  /** Happens whenever it is asked what is in a directory. */
  readonly #meanwhile: () => Promise<void>;

  constructor(meanwhile = () => Promise.resolve()) {
    this.#meanwhile = meanwhile;
  }

  file(name: string, claim: Claim): GuestFile {
    const known = this.#claims.indexOf(claim);
    const inode = known === -1 ? this.#claims.push(claim) - 1 : known;
    const kind: GuestFileKind =
      typeof claim === 'string' ? 'link' : Buffer.isBuffer(claim) ? 'file' : 'directory';
    const sizeBytes = Buffer.isBuffer(claim) ? claim.length : 0;
    return { name, kind, inode, uid: 1000, gid: 1000, mode: 0o755, sizeBytes };
  }

  root(): Promise<GuestFile> {
    return Promise.resolve(this.file('', new Map()));
  }

  async list({ inode }: GuestFile): Promise<readonly GuestFile[]> {
    await this.#meanwhile();
    const claim = this.#claims[inode];
    const entries = claim instanceof Map ? [...claim] : [];
    return entries.map(([name, inside]) => this.file(name, inside));
  }

  async find(directory: GuestFile, wanted: string): Promise<GuestFile | null> {
    return (await this.list(directory)).find(({ name }) => name === wanted) ?? null;
  }

  details({ inode }: GuestFile) {
    const claim = this.#claims[inode];
    return Promise.resolve({ modifiedAt: new Date(0), leadsTo: typeof claim === 'string' ? claim : null });
  }

  async *content({ inode }: GuestFile): AsyncGenerator<Buffer> {
    const claim = this.#claims[inode];
    if (Buffer.isBuffer(claim)) yield await Promise.resolve(claim);
  }
}

async function directoryFor(test: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'sp-extraction-'));
  test.teardown(() => rm(directory, { recursive: true }));
  return directory;
}

/** Takes out what a guest claims, under its path. */
async function extract(to: string, path: string, claim: Claim, meanwhile?: () => Promise<void>) {
  const tree = new ClaimedTree(meanwhile);
  const extraction = new FileExtraction(tree, { to, force: false, signal: new AbortController().signal });
  await extraction.requireRoom(path);
  await extraction.extract(path, tree.file(path, claim));
  return extraction.extracted;
}

void t.test('a file is whole also where the system takes less at a time than it is given', async (t) => {
  const to = await directoryFor(t);
  const content = Buffer.alloc(200_000, 'abcdefg');
  // The directory that is written to is held open.
  using files = new FaultyFiles('/proc/self/fd');
  await files.run(null, [], () => extract(to, '/first', content));
  const writes = files.calls.flatMap(({ operation }, at) => (operation === 'write' ? at : []));
  for (const at of writes) {
    const name = `file-${at}`;
    const short = { errno: null, when: 'half' } as const;
    await files.run(at, [short], () => extract(to, `/${name}`, content));
    t.equal(files.failed?.operation, 'write');
    t.ok((await readFile(join(to, name))).equals(content));
  }
  t.equal(writes.length, 4);
});

const hello = Buffer.from('hello');
const somebody = { uid: 1234, gid: 1234 };

void t.test('root writes nowhere that somebody else could lead to another place', async (t) => {
  const base = await directoryFor(t);
  const [theirs, ours, shared] = [join(base, 'theirs'), join(base, 'ours'), join(base, 'shared')];
  for (const directory of [theirs, ours, shared, join(shared, 'theirs'), join(shared, 'ours')])
    await mkdir(directory);
  for (const directory of [theirs, join(shared, 'theirs')])
    await chown(directory, somebody.uid, somebody.gid);
  await symlink(ours, join(theirs, 'link'));
  await symlink('theirs/link', join(base, 'link'));
  await chmod(shared, 0o1777);
  const refused = ['theirs/out', 'theirs/link', 'link', 'link/out', 'shared/theirs'];
  for (const to of refused)
    await t.rejects(
      extract(join(base, to), '/f', hello),
      { code: 'WORK_DIRECTORY_UNSAFE', hint: /--to/ },
      to,
    );
  await chmod(ours, 0o775);
  await chown(ours, 0, somebody.gid);
  await t.rejects(extract(join(ours, 'out'), '/f', hello), { code: 'WORK_DIRECTORY_UNSAFE' });
  t.same(await readdir(ours), []);
  t.same(await readdir(theirs), ['link']);
  await symlink('shared', join(base, 'safe'));
  for (const to of ['theirs', 'shared/ours', 'shared/new', 'safe/newer']) {
    await extract(join(base, to), '/f', hello);
    t.equal(await readFile(join(base, to, 'f'), 'utf8'), 'hello', to);
  }
});

void t.test('a directory that is replaced by a link while it is filled leads nowhere', async (t) => {
  const base = await directoryFor(t);
  const [to, elsewhere] = [join(base, 'to'), join(base, 'elsewhere')];
  await mkdir(elsewhere);
  const swap = async (): Promise<void> => {
    await rename(join(to, 'd'), join(to, 'moved'));
    await symlink(elsewhere, join(to, 'd'));
  };
  await extract(
    to,
    '/d',
    new Map<string, Claim>([
      ['f', hello],
      ['l', 'hello'],
    ]),
    swap,
  );
  t.same(await readdir(elsewhere), []);
  t.same((await readdir(join(to, 'moved'))).toSorted(), ['f', 'l']);
  t.match(await stat(elsewhere), { uid: 0, gid: 0 }, 'it keeps its owner');
});

void t.test(
  'what the system refuses is told with the path that people know, and leaves nothing',
  async (t) => {
    const to = await directoryFor(t);
    using files = new FaultyFiles('/proc/self/fd');
    for (const [errno, code] of [
      ['ENOSPC', 'NOT_ENOUGH_DISK_SPACE'],
      ['EIO', 'COPY_FAILED'],
    ] as const) {
      await files.run(null, [], () => extract(to, '/f', hello));
      const at = files.calls.findIndex(({ operation }) => operation === 'write');
      await rm(join(to, 'f'));
      const failing = files.run(at, [{ errno, when: 'before' }], () => extract(to, '/f', hello));
      await t.rejects(failing, {
        code,
        message: new RegExp(`^${join(to, 'f')} cannot be written: ${errno}`),
      });
      t.same(await readdir(to), []);
    }
  },
);

void t.test('what a guest claims and no host can have hides no other file, and has an end', async (t) => {
  const to = await directoryFor(t);
  const cycle = new Map<string, Claim>([['f', hello]]);
  cycle.set('again', cycle);
  let deep: Claim = new Map([['f', hello]]);
  for (let depth = 0; depth < 3000; depth += 1) deep = new Map([['d', deep]]);
  const claims = new Map<string, Claim>([
    ['x'.repeat(256), hello],
    ['x'.repeat(256).toUpperCase(), new Map()],
    ['far', 'x'.repeat(4096)],
    ['nowhere', ''],
    ['zero', 'a\0b'],
    ['a/b', hello],
    ['cycle', cycle],
    ['deep', deep],
    ['last', hello],
  ]);
  const extracted = await extract(to, '/top', claims);
  t.equal(await readFile(join(to, 'top/last'), 'utf8'), 'hello');
  t.equal(await readFile(join(to, 'top/cycle/f'), 'utf8'), 'hello');
  t.same((await readdir(join(to, 'top'))).toSorted(), ['cycle', 'deep', 'last']);
  t.match(extracted, { files: 2, links: 0 });
  t.same(
    extracted.unreadable.map((told) => told.slice(0, 12)),
    [
      '/top/xxxxxxx',
      '/top/XXXXXXX',
      '/top/far: fa',
      '/top/nowhere',
      '/top/zero: z',
      '/top/a/b: a/',
      '/top/cycle/a',
      '/top/deep/d/',
    ],
  );
});
