import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import * as fc from 'fast-check';
import t from 'tap';
import { chunkBytes, fileHasher, formatSums, parseSums, sumsSizeBytes } from './chunkSums.ts';
import { hashFile } from './copy.ts';

const mebibyte = 1024 * 1024;

void t.test('the digest of a volume is what split and sha256sum make of it', async (t) => {
  const directory = t.testdir({});
  for (const [sizeBytes, data] of [
    [0, []],
    [1, [0]],
    [chunkBytes, [chunkBytes - 1]],
    [9 * mebibyte + 5, [5 * mebibyte]],
    [40 * mebibyte, [17 * mebibyte, 39 * mebibyte]],
  ] as const) {
    const path = join(directory, `f${sizeBytes}`);
    const file = await open(path, 'w');
    await file.truncate(sizeBytes);
    for (const position of data) await file.write(randomBytes(1), 0, 1, position);
    await file.close();
    const { stdout } = await execa('split', ['-b', '1M', '--filter=sha256sum', path], {
      timeout: 30_000,
      stripFinalNewline: false,
    });
    const hashed = await hashFile(path, { digest: 'chunks' });
    t.equal(hashed.sums, stdout, `${sizeBytes} bytes`);
    t.equal(sumsSizeBytes(sizeBytes), stdout.length);
    const { stdout: whole } = await execa('sha256sum', { input: stdout, timeout: 30_000 });
    t.equal(hashed.sha256, whole.slice(0, 64));
    t.equal(formatSums(parseSums(stdout) ?? ['none']), stdout);
  }
});

void t.test('pieces of any length give the same digest', async (t) => {
  const seed = Date.now();
  t.comment(`seed ${seed}`);
  const piece = fc.record({ zero: fc.boolean(), bytes: fc.integer({ min: 1, max: 3 * mebibyte }) });
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { minLength: 1, maxLength: 8 }), async (pieces) => {
      const inPieces = fileHasher('chunks');
      const blocks = pieces.map(({ zero, bytes }) => (zero ? Buffer.alloc(bytes) : randomBytes(bytes)));
      for (const block of blocks) inPieces.update(block);
      const atOnce = fileHasher('chunks');
      atOnce.update(Buffer.concat(blocks));
      return inPieces.finish().sums === atOnce.finish().sums;
    }),
    { seed, numRuns: 20 },
  );
});

void t.test('half a list is no list', async (t) => {
  const line = `${'0'.repeat(64)}  -\n`;
  t.same(parseSums(line + line), ['0'.repeat(64), '0'.repeat(64)]);
  t.same(parseSums(''), []);
  for (const text of [line.slice(0, -1), `${line}\n`, line.slice(1), `x${line.slice(1)}`, 'list'])
    t.equal(parseSums(text), null, JSON.stringify(text));
});
