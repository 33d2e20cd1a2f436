import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { FaultyFiles } from '../test/sim/faultyFiles.ts';
import { exists } from './files.ts';
import { makeWholeDirectory } from './wholeDirectory.ts';

const files = new Map([
  ['a', Buffer.from('one')],
  ['b', Buffer.from('two')],
]);

async function temporaryDirectory(t: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-whole-'));
  t.teardown(() => rm(directory, { recursive: true }));
  return directory;
}

void t.test('the directory has all of its files, and nobody but its owner can read them', async (t) => {
  const path = join(await temporaryDirectory(t), 'd');
  await makeWholeDirectory(path, files);
  t.same((await readdir(path)).toSorted(), ['a', 'b']);
  t.equal(await readFile(join(path, 'b'), 'utf8'), 'two');
  t.equal((await stat(path)).mode & 0o777, 0o700);
  t.equal((await stat(join(path, 'a'))).mode & 0o777, 0o600);
});

void t.test('what is there under its name stays', async (t) => {
  const path = join(await temporaryDirectory(t), 'd');
  await makeWholeDirectory(path, files);
  await t.rejects(makeWholeDirectory(path, new Map([['a', 'other']])), { code: 'ENOTEMPTY' });
  t.equal(await readFile(join(path, 'a'), 'utf8'), 'one');
});

void t.test(
  'whatever call fails, and whether or not anything works after it, it is there whole or not',
  async (t) => {
    const root = await temporaryDirectory(t);
    using faulty = new FaultyFiles(root);
    await faulty.run(null, [], () => makeWholeDirectory(join(root, 'all'), files));
    const calls = faulty.calls.length;
    t.ok(calls > 8, `${calls} calls`);
    for (const afterwards of [undefined, 'EIO'])
      for (const when of ['before', 'after', 'half'] as const)
        for (let at = 0; at < calls; at += 1) {
          const path = join(root, `${afterwards ?? 'once'}-${when}-${at}`);
          const fault = { errno: 'EIO', when, ...(afterwards === undefined ? {} : { afterwards }) };
          await faulty
            .run(at, [fault], () => makeWholeDirectory(path, files))
            .catch((error: unknown) => t.match(error, { code: 'EIO' }));
          if (await exists(path)) t.same((await readdir(path)).toSorted(), ['a', 'b'], `${when} call ${at}`);
        }
  },
);
