import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdir, readFile, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import t from 'tap';
import { BandwidthLimit } from './bandwidth.ts';
import { fileHasher } from './chunkSums.ts';
import { copyFileDurable, hashFile } from './copy.ts';
import { FaultyFiles, openBelow } from '../test/sim/faultyFiles.ts';
import { hashInPieces, openDirect } from './pieces.ts';

const sha256 = (data: Buffer): string => createHash('sha256').update(data).digest('hex');
const kinds = ['whole', 'chunks'] as const;

function chunksSha256(data: Buffer): string {
  const hasher = fileHasher('chunks');
  hasher.update(data);
  return hasher.finish().sha256;
}

void t.test(
  'a copy has the bytes, the size, the digest and the mode of its source, wherever zeros lie',
  async (t) => {
    const directory = t.testdir({});
    const piece = fc.record({ zero: fc.boolean(), bytes: fc.integer({ min: 1, max: 3 * 1024 * 1024 }) });
    let round = 0;
    const seed = Date.now();
    t.comment(`seed ${seed}`);
    await fc.assert(
      fc.asyncProperty(
        fc.array(piece, { maxLength: 5 }),
        fc.constantFrom(...kinds),
        async (pieces, digest) => {
          const data = Buffer.concat(
            pieces.map((p) => (p.zero ? Buffer.alloc(p.bytes) : randomBytes(p.bytes))),
          );
          const [from, to] = [join(directory, `from${round}`), join(directory, `to${round}`)];
          round += 1;
          await writeFile(from, data, { mode: 0o640 });
          const result = await copyFileDurable({ from, to, digest });
          const copy = await readFile(to);
          if (!copy.equals(data)) throw new Error('the copy differs');
          if (
            result.sizeBytes !== data.length ||
            result.sha256 !== (digest === 'whole' ? sha256 : chunksSha256)(data)
          )
            throw new Error('wrong digest');
          if (((await stat(to)).mode & 0o777) !== 0o640) throw new Error('wrong mode');
        },
      ),
      { numRuns: 24, seed },
    );
  },
);

void t.test('a sparse file stays sparse', async (t) => {
  const directory = t.testdir({});
  const from = join(directory, 'from');
  await writeFile(from, randomBytes(4096));
  await truncate(from, 64 * 1024 * 1024 + 5);
  for (const digest of kinds) {
    const to = join(directory, digest);
    await copyFileDurable({ from, to, mode: 0o600, digest });
    const { size, blocks, mode } = await stat(to);
    t.equal(size, 64 * 1024 * 1024 + 5);
    t.ok(blocks * 512 <= 256 * 1024, `${blocks} blocks`);
    t.equal(mode & 0o777, 0o600);
    t.same(await hashFile(to, { digest }), await hashFile(from, { digest }));
  }
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
  for (const digest of kinds) {
    const abort = new AbortController();
    const copying = copyFileDurable({
      from,
      to,
      digest,
      signal: abort.signal,
      limit: new BandwidthLimit(1024 * 1024), // it would take nine seconds
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
    t.same(await readdir(directory), ['from'], digest);
  }
});

void t.test('bandwidth is held back', async (t) => {
  const directory = t.testdir({});
  const from = join(directory, 'from');
  await writeFile(from, randomBytes(8 * 1024 * 1024));
  for (const digest of kinds) {
    const startedAt = performance.now();
    const to = join(directory, digest);
    await copyFileDurable({ from, to, digest, limit: new BandwidthLimit(16 * 1024 * 1024) });
    t.ok(performance.now() - startedAt >= 450, digest);
  }
});

void t.test('links and other things than files are refused', async (t) => {
  const directory = t.testdir({ file: 'x' });
  await symlink(join(directory, 'file'), join(directory, 'link'));
  for (const digest of kinds) {
    await t.rejects(hashFile(join(directory, 'link'), { digest }), { code: 'ELOOP' });
    await t.rejects(hashFile(directory, { digest }), /not a regular file|EINVAL/);
    const [from, to] = [join(directory, 'link'), join(directory, 'to')];
    await t.rejects(copyFileDurable({ from, to, digest }), { code: 'ELOOP' });
  }
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

void t.test('a piece that cannot be written ends the others', async (t) => {
  const directory = t.testdir({});
  const from = join(directory, 'from');
  await writeFile(from, randomBytes(40 * 1024 * 1024));
  const file = await openDirect(from);
  t.teardown(() => file.close());
  let uses = 0;
  const full = Object.assign(new Error('no space'), { code: 'ENOSPC' });
  await t.rejects(
    hashInPieces(file, {}, async () => {
      uses += 1;
      throw full;
    }),
    { code: 'ENOSPC' },
  );
  t.ok(uses < 8, `${uses} pieces were tried`);
});

void t.test('whatever call of a copy fails, it says so, leaves no file, and nothing open', async (t) => {
  for (const digest of kinds) {
    const place = t.testdir({});
    const from = join(place, 'from');
    const to = join(place, 'to');
    await writeFile(from, randomBytes(9_000_000));
    using files = new FaultyFiles(place);
    await files.run(null, [], async () => copyFileDurable({ from, to, digest }));
    await rm(to);
    const calls = files.calls.length;
    for (const when of ['before', 'after'] as const)
      for (let at = 0; at < calls; at++) {
        // A read ahead may fail while what was read before is still being written.
        const fault = { errno: 'EIO', when } as const;
        const copied = files.run(at, [fault], async () => copyFileDurable({ from, to, digest }));
        const error: unknown = await copied.then(
          () => null,
          (caught: unknown) => caught,
        );
        const { failed } = files;
        if (failed === null) {
          t.equal(error, null);
          await rm(to, { force: true });
          continue;
        }
        const where = `${digest}: ${failed.operation} of ${failed.path.slice(place.length)}, ${when}`;
        t.match(error, { code: 'EIO' }, where);
        t.same(await openBelow(place), [], where);
        // The name of a whole copy may not be on the disk; who copies to a name of its own removes it.
        const isWhole = failed.path === place || failed.path === from;
        // Whether a file is ours whose creation is said to have failed, nobody knows.
        const isUnclear = failed.operation === 'open' && when === 'after';
        if (!isWhole && !isUnclear) t.same(await readdir(place), ['from'], where);
        await rm(to, { force: true });
      }
  }
});
