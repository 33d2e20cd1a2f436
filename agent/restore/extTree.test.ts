import { chmod, chown, mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { extImage } from '../lookedFixture.ts';
import { ExtTree, readerUser } from './extTree.ts';
import { FileExtraction } from './fileExtraction.ts';
import { findGuestFile, type GuestFile } from './guestTree.ts';

/** An image opened as that of a guest. */
async function open(test: Test, image: Buffer, signal = new AbortController().signal) {
  const directory = await mkdtemp(join(tmpdir(), 'sp-tree-'));
  test.teardown(() => rm(directory, { recursive: true }));
  await chmod(directory, 0o711);
  const [file, to] = ['volume', join(directory, 'to')];
  await writeFile(join(directory, file), image);
  await chown(join(directory, file), readerUser.uid, readerUser.gid);
  return { tree: await ExtTree.open({ directory, file, signal }), to };
}

async function find(tree: ExtTree, path: string): Promise<GuestFile> {
  const found = await findGuestFile(tree, path);
  if (found === null) throw new Error(`${path} is not in the image`);
  return found;
}

const large = Buffer.alloc(8 * 1024 * 1024, 'abcdefg');
const withLarge = (root: string): Promise<void> => writeFile(join(root, 'large'), large);

void t.test(
  'an abort in the middle of a file ends its extraction with the reason, and no part stays',
  async (t) => {
    const ending = new AbortController();
    const { tree, to } = await open(t, await extImage(t, withLarge), ending.signal);
    const file = await find(tree, '/large');
    const extraction = new FileExtraction(tree, { to, force: false, signal: ending.signal });
    const extracting = extraction.extract('/large', file);
    const ended = t.rejects(extracting, { message: 'enough' });
    const begun = async (): Promise<boolean> => (await readdir(to).catch(() => [])).length > 0;
    while (!(await begun())) await new Promise((done) => setImmediate(done));
    ending.abort(new Error('enough'));
    await ended;
    t.same(await readdir(to), []);
  },
);

void t.test('an abort while the bytes of a file are used is thrown to who reads it', async (t) => {
  const ending = new AbortController();
  const { tree } = await open(t, await extImage(t, withLarge), ending.signal);
  const file = await find(tree, '/large');
  const reading = async (): Promise<void> => {
    for await (const _ of tree.content(file)) {
      ending.abort(new Error('enough'));
      // The child has told of it before anybody asks for more.
      await new Promise((done) => setImmediate(done));
    }
  };
  await t.rejects(reading(), { message: 'enough' });
  await t.rejects(tree.list(await tree.root()), { message: 'enough' }, 'nothing is begun any more');
});

void t.test('a link that leads further than any path is one file that cannot be read', async (t) => {
  const far = '/tmp'.padEnd(1000, '/.');
  const fill = async (root: string): Promise<void> => {
    await symlink(far, join(root, 'far'));
    await writeFile(join(root, 'further'), '/../'.repeat(100_000));
  };
  const image = await extImage(t, fill, { debugfs: ['set_inode_field /further mode 0120777'] });
  const { tree } = await open(t, image);
  t.equal((await tree.details(await find(tree, '/far'))).leadsTo, far);
  const further = await find(tree, '/further');
  t.equal(further.kind, 'link');
  await t.rejects(tree.details(further), { code: 'FILE_UNREADABLE' });
  await t.rejects(findGuestFile(tree, '/further/on'), { code: 'FILE_UNREADABLE' });
});
