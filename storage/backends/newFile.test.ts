import { randomBytes } from 'node:crypto';
import { readFile, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { directBuffers, reopenDirect, sharedDirectBuffers } from '../../common/directBuffers.ts';
import { FaultyFiles } from '../../test/sim/faultyFiles.ts';
import { writeNewFile } from './newFile.ts';

const kibibyte = 1024;
/** TMPFS_MAGIC of statfs(2). */
const tmpfsMagic = 0x01021994;

/** Random bytes in memory from which a write may go past the page cache. */
function direct(...lengths: readonly number[]): readonly Buffer[] {
  const buffers = sharedDirectBuffers(lengths.length, 128 * kibibyte);
  return lengths.map((length, index) => {
    const part = (buffers[index] ?? Buffer.alloc(0)).subarray(0, length);
    randomBytes(length).copy(part);
    return part;
  });
}

const written = {
  nothing: [],
  'small parts of any memory': [randomBytes(7), Buffer.alloc(0), randomBytes(9)],
  'large parts of any memory': [randomBytes(100 * kibibyte), randomBytes(100 * kibibyte + 1)],
  'whole blocks': direct(128 * kibibyte, 128 * kibibyte),
  'blocks, and less than one': direct(128 * kibibyte, 64 * kibibyte, 368),
  'blocks and a piece of one in one part': direct(64 * kibibyte + 4096 + 17),
  'less than a block': direct(4095),
  'parts that do not end where a block does': direct(4096, 4097, 4096),
  'parts that do not begin where a block does': direct(64 * kibibyte).map((part) => part.subarray(512)),
  'memory for it, and other': [...direct(64 * kibibyte), randomBytes(8192)],
} satisfies Record<string, readonly Buffer[]>;

for (const [name, parts] of Object.entries(written))
  void t.test(`${name}: the file has these bytes, and nobody may change them`, async (t) => {
    const path = join(t.testdir(), 'file');
    await writeNewFile(path, parts);
    t.ok((await readFile(path)).equals(Buffer.concat(parts)));
    t.equal((await stat(path)).mode & 0o777, 0o400);
    await t.rejects(writeNewFile(path, parts), { code: 'EEXIST' });
  });

void t.test(
  'where the file system refuses the direct way, on opening or later, it goes the other',
  async (t) => {
    const root = t.testdir();
    const parts = direct(128 * kibibyte, 5000);
    using seen = new FaultyFiles(root);
    await seen.run(null, [], async () => writeNewFile(join(root, 'seen'), parts));
    const { calls } = seen;
    const refusing = calls.flatMap(({ operation }, at) =>
      at > 0 && (operation === 'open' || (operation === 'write' && calls[at - 1]?.operation !== 'close'))
        ? [at]
        : [],
    );
    t.equal(refusing.length, 3, 'the second opening, and a write for each part');
    for (const [at, errno] of refusing.flatMap((call) => [
      [call, 'EINVAL'] as const,
      [call, 'ENOTSUP'] as const,
    ])) {
      const path = join(root, `${errno} at ${at}`);
      using files = new FaultyFiles(root);
      await files.run(at, [{ errno, when: 'before' }], async () => writeNewFile(path, parts));
      t.equal(files.failed?.operation, calls[at]?.operation);
      t.ok((await readFile(path)).equals(Buffer.concat(parts)));
      t.equal((await stat(path)).mode & 0o777, 0o400);
    }
  },
);

void t.test('what goes past the page cache does not stay in it', async (t) => {
  const root = t.testdir({ probe: '' });
  const handle = await reopenDirect(join(root, 'probe'));
  await handle?.close();
  const ordinary = join(root, 'ordinary');
  await writeNewFile(ordinary, [Buffer.alloc(128 * kibibyte, 1)]);
  t.equal(await cachedBytes(ordinary), 128 * kibibyte, 'it would be seen');
  const past = join(root, 'direct');
  await writeNewFile(past, direct(128 * kibibyte, 128 * kibibyte, 17));
  // On a file system that is the page cache, or always goes through it, there is nothing to be seen.
  const isCache = handle === null || (await statfs(root)).type === tmpfsMagic;
  const most = isCache ? 3 * 128 * kibibyte : 4096;
  t.ok((await cachedBytes(past)) <= most, `${await cachedBytes(past)} bytes are in the page cache`);
});

void t.test('memory that is not shared goes the same way', async (t) => {
  const path = join(t.testdir(), 'file');
  const [part = Buffer.alloc(0)] = directBuffers(1, 64 * kibibyte);
  randomBytes(part.length).copy(part);
  await writeNewFile(path, [part]);
  t.ok((await readFile(path)).equals(part));
});

async function cachedBytes(path: string): Promise<number> {
  const { stdout } = await execa('fincore', ['--bytes', '--noheadings', '--output', 'RES', path]);
  return Number(stdout);
}
