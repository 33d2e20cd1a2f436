import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdir, readFile, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import t from 'tap';
import { copyFileDurable, hashFile } from './copy.ts';

const sha256 = (data: Buffer): string => createHash('sha256').update(data).digest('hex');

void t.test(
  'a copy has the bytes, the size, the digest and the mode of its source, wherever zeros lie',
  async (t) => {
    const directory = t.testdir({});
    const piece = fc.record({ zero: fc.boolean(), bytes: fc.integer({ min: 1, max: 3 * 1024 * 1024 }) });
    let round = 0;
    const seed = Date.now();
    t.comment(`seed ${seed}`);
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 5 }), async (pieces) => {
        const data = Buffer.concat(
          pieces.map((p) => (p.zero ? Buffer.alloc(p.bytes) : randomBytes(p.bytes))),
        );
        const [from, to] = [join(directory, `from${round}`), join(directory, `to${round}`)];
        round += 1;
        await writeFile(from, data, { mode: 0o640 });
        const result = await copyFileDurable({ from, to });
        const copy = await readFile(to);
        if (!copy.equals(data)) throw new Error('the copy differs');
        if (result.sizeBytes !== data.length || result.sha256 !== sha256(data))
          throw new Error('wrong digest');
        if (((await stat(to)).mode & 0o777) !== 0o640) throw new Error('wrong mode');
      }),
      { numRuns: 12, seed },
    );
  },
);

void t.test('a sparse file stays sparse', async (t) => {
  const directory = t.testdir({});
  const [from, to] = [join(directory, 'from'), join(directory, 'to')];
  await writeFile(from, randomBytes(4096));
  await truncate(from, 64 * 1024 * 1024 + 5);
  await copyFileDurable({ from, to, mode: 0o600 });
  const { size, blocks, mode } = await stat(to);
  t.equal(size, 64 * 1024 * 1024 + 5);
  t.ok(blocks * 512 <= 256 * 1024, `${blocks} blocks`);
  t.equal(mode & 0o777, 0o600);
  t.same(await hashFile(to), await hashFile(from));
});

void t.test('a copy never overwrites', async (t) => {
  const directory = t.testdir({ from: 'new', to: 'precious' });
  await t.rejects(copyFileDurable({ from: join(directory, 'from'), to: join(directory, 'to') }), {
    code: 'EEXIST',
  });
  t.equal(await readFile(join(directory, 'to'), 'utf8'), 'precious');
});

void t.test('an aborted copy removes its unfinished target', async (t) => {
  const directory = t.testdir({});
  const [from, to] = [join(directory, 'from'), join(directory, 'to')];
  await writeFile(from, randomBytes(9 * 1024 * 1024));
  const abort = new AbortController();
  const copying = copyFileDurable({
    from,
    to,
    signal: abort.signal,
    bandwidthBytesPerSecond: 1024 * 1024, // it would take nine seconds
    onProgress: () => abort.abort(new Error('stop it')),
  });
  const [, error] = await Promise.all([
    once(abort.signal, 'abort'),
    copying.then(
      () => null,
      (thrown: unknown) => thrown,
    ),
  ]);
  t.match(error, { message: /stop it|aborted/ });
  t.same(await readdir(directory), ['from']);
});

void t.test('bandwidth is held back', async (t) => {
  const directory = t.testdir({});
  const [from, to] = [join(directory, 'from'), join(directory, 'to')];
  await writeFile(from, randomBytes(8 * 1024 * 1024));
  const startedAt = performance.now();
  await copyFileDurable({ from, to, bandwidthBytesPerSecond: 16 * 1024 * 1024 });
  t.ok(performance.now() - startedAt >= 450);
});

void t.test('links and other things than files are refused', async (t) => {
  const directory = t.testdir({ file: 'x' });
  await symlink(join(directory, 'file'), join(directory, 'link'));
  await t.rejects(hashFile(join(directory, 'link')), { code: 'ELOOP' });
  await t.rejects(hashFile(directory), /not a regular file/);
  await t.rejects(copyFileDurable({ from: join(directory, 'link'), to: join(directory, 'to') }), {
    code: 'ELOOP',
  });
});

void t.test('hashing reports progress, and content is compared by every byte', async (t) => {
  const directory = t.testdir({});
  const a = join(directory, 'a');
  const data = randomBytes(5 * 1024 * 1024);
  await writeFile(a, data);
  const progress: number[] = [];
  t.same(await hashFile(a, { onProgress: (bytes) => progress.push(bytes) }), {
    sizeBytes: data.length,
    sha256: sha256(data),
    sums: null,
  });
  t.same(progress, [4 * 1024 * 1024, 5 * 1024 * 1024]);
});
