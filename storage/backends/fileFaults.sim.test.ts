import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { sharedDirectBuffers } from '../../common/directBuffers.ts';
import { isBelow } from '../../common/files.ts';
import { FaultyFiles, type FileFault, openBelow } from '../../test/sim/faultyFiles.ts';
import { StorageError } from '../errors.ts';
import { type Backend, listAll } from './backend.ts';
import { FileBackend } from './fileBackend.ts';

/** Every way in which a call goes wrong, and what that is called. */
const faults: readonly (FileFault & { readonly code: string })[] = [
  { errno: 'EIO', when: 'before', code: 'STORAGE_UNREACHABLE' },
  { errno: 'EIO', when: 'after', code: 'STORAGE_UNREACHABLE' },
  { errno: 'EIO', when: 'half', code: 'STORAGE_UNREACHABLE' },
  { errno: 'ENOSPC', when: 'before', code: 'STORAGE_FULL' },
  { errno: 'ENOSPC', when: 'half', code: 'STORAGE_FULL' },
  { errno: 'EROFS', when: 'before', code: 'STORAGE_READ_ONLY' },
  { errno: 'ESTALE', when: 'before', code: 'STORAGE_UNREACHABLE' },
  { errno: 'ESTALE', when: 'after', code: 'STORAGE_UNREACHABLE' },
  { errno: 'EINTR', when: 'before', code: 'STORAGE_FAILED' },
  { errno: null, when: 'half', code: 'none' },
];

const content = (name: string): Buffer => Buffer.alloc(70_000, name);
const published = ['packs/aa/old', 'packs/aa/gone', 'config/1'];
const added = ['packs/aa/new', 'packs/bb/new', 'deletions/new'];

/** What is written past the page cache, and what is not. */
function partsOf(name: string): readonly Buffer[] {
  const bytes = content(name);
  if (name !== 'packs/bb/new') return [bytes.subarray(0, 999), bytes.subarray(999)];
  const parts = sharedDirectBuffers(2, 64 * 1024);
  return parts.map((part, index) => part.subarray(0, bytes.copy(part, 0, index * part.length)));
}

/** Everything that the port can be asked for. */
async function session(backend: Backend): Promise<void> {
  for (const name of [...added, 'config/1']) await backend.create(name, partsOf(name));
  await backend.read('packs/aa/old');
  await backend.read('packs/aa/old', { range: { offsetBytes: 5, lengthBytes: 60_000 } });
  await backend.size('config/1');
  await backend.size('config/2');
  await listAll(backend, 'packs/');
  await backend.delete('packs/aa/gone');
}

async function prepared(t: Test): Promise<string> {
  const root = t.testdir();
  const backend = backendAt(root);
  for (const name of published) await backend.create(name, [content(name)]);
  return root;
}

function backendAt(root: string): FileBackend {
  return new FileBackend(root, { reserve: { notForPrefix: 'packs/', bytesMax: 1, hint: 'make room' } });
}

/** What is not as promised after a session, whatever came of it. */
async function problemsIn(root: string): Promise<readonly string[]> {
  const backend = backendAt(root);
  const found: string[] = [];
  for (const prefix of ['packs/', 'config/', 'deletions/'])
    for (const { name } of await listAll(backend, prefix)) {
      if (![...published, ...added].includes(name)) found.push(`${name} came into being`);
      const bytes = await backend.read(name);
      if (bytes === null || !bytes.equals(content(name))) found.push(`${name} is not whole`);
    }
  for (const name of ['packs/aa/old', 'config/1'])
    if ((await backend.size(name)) === null) found.push(`${name} is lost`);
  for (const path of await openBelow(root)) found.push(`${path} is open`);
  return found;
}

for (const fault of faults) {
  const what = `${fault.errno ?? 'less than was asked for'}${fault.when === 'before' ? '' : `, ${fault.when}`}`;
  void t.test(`every call of a session with ${what}: told, nothing lost, and repeated`, async (t) => {
    let calls = Infinity;
    let happened = 0;
    for (let at = 0; at < calls; at++) {
      const root = await prepared(t);
      using files = new FaultyFiles(root);
      let error: unknown = null;
      try {
        await files.run(at, [fault], async () => session(backendAt(root)));
        calls = Math.min(calls, files.calls.length);
      } catch (caught) {
        error = caught;
      }
      const { failed } = files;
      if (failed === null) {
        t.equal(error, null, `call ${at}`);
        continue;
      }
      happened++;
      const where = `${failed.operation} of ${failed.path.slice(root.length)}, call ${at}`;
      if (fault.errno === null) t.equal(error, null, `${where}: goes on`);
      else if (!(error instanceof StorageError)) t.fail(`${where}: ${String(error)}`);
      else t.match(error, { code: fault.code, hint: /./ }, where);
      t.same(await problemsIn(root), [], where);
      const isRemoval = failed.operation === 'rm' && dirname(failed.path) === join(root, 'tmp');
      if (!isRemoval) t.same(await readdir(join(root, 'tmp')), [], `${where}: nothing temporary stays`);

      await files.run(null, [], async () => session(backendAt(root)));
      await backendAt(root).removeLeftovers(new Date(Date.now() + 1000));
      t.same(await readdir(join(root, 'tmp')), []);
      t.same((await listAll(backendAt(root), 'packs/')).map(({ name }) => name).toSorted(), [
        'packs/aa/new',
        'packs/aa/old',
        'packs/bb/new',
      ]);
      t.same(await problemsIn(root), [], `${where}: the next session`);
    }
    t.ok(happened > 0, 'it happened at all');
    t.comment(`${happened} calls`);
  });
}

void t.test('what a full file system says is not hidden by what its clearing up says', async (t) => {
  const root = await prepared(t);
  using files = new FaultyFiles(root);
  const create = async (name: string) => backendAt(root).create(name, [content(name)]);
  await files.run(null, [], async () => create('config/2'));
  const write = files.calls.findIndex(({ operation }) => operation === 'write');
  const fault: FileFault = { errno: 'ENOSPC', when: 'half', afterwards: 'EIO' };
  await t.rejects(
    files.run(write, [fault], async () => create('config/3')),
    { code: 'STORAGE_FULL' },
  );
});

void t.test('every name on the way to an object is on the disk before its creation is told', async (t) => {
  const root = t.testdir();
  using files = new FaultyFiles(root);
  await files.run(null, [], async () => backendAt(root).create('packs/aa/b', [content('x')]));
  for (const path of ['tmp', 'packs', 'packs/aa', 'packs/aa/b'].map((name) => join(root, name))) {
    const made = files.calls.findIndex(
      (call) =>
        ['mkdir', 'link'].includes(call.operation) && (call.path === path || isBelow(path, call.path)),
    );
    t.ok(
      files.calls.slice(made + 1).some((call) => call.operation === 'sync' && call.path === dirname(path)),
      path.slice(root.length),
    );
  }
});
