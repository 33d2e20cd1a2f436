import { randomBytes } from 'node:crypto';
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import t from 'tap';
import type { Test } from 'tap';
import { chunkBytes, parseSums, sumsOf, chunkSha256 } from '../../common/chunkSums.ts';
import { EditedFile } from './editedFile.ts';

const kibibyte = 1024;

async function directoryFor(test: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-'));
  test.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

function sumsFor(content: Buffer): string {
  const chunks: string[] = [];
  for (let start = 0; start < content.length; start += chunkBytes)
    chunks.push(chunkSha256(content.subarray(start, start + chunkBytes)));
  return sumsOf(chunks).sums;
}

/** Runs `edit` on a file of this content; what the file holds then, and its digests. */
async function edited(
  path: string,
  content: Buffer,
  edit: (file: EditedFile) => Promise<void>,
  stored = content,
): Promise<{ readonly content: Buffer; readonly sums: string }> {
  await writeFile(path, stored);
  const handle = await open(path, 'r+');
  try {
    const file = new EditedFile(handle, content.length, parseSums(sumsFor(content)) ?? []);
    try {
      await edit(file);
      const sums = await file.finish();
      return { content: await readFile(path), sums };
    } finally {
      await file.close();
    }
  } finally {
    await handle.close();
  }
}

void t.test(
  'whatever is read and written, far apart, over each other and beyond the end: as in memory, with its digests',
  async (t) => {
    const directory = await directoryFor(t);
    const seed = Date.now();
    t.comment(`seed ${seed}`);
    // More chunks than are kept in memory, so that they are stored and needed again.
    const sizeBytes = fc.integer({ min: 9 * chunkBytes, max: 16 * chunkBytes });
    const change = fc.record({
      reads: fc.boolean(),
      // Also beyond the end, over a stretch that nobody writes.
      at: fc.integer({ min: 0, max: 1100 }),
      align: fc.constantFrom(1, 64 * kibibyte, chunkBytes),
      lengthBytes: fc.oneof(
        fc.integer({ min: 1, max: 200 * kibibyte }),
        fc.constantFrom(64 * kibibyte, chunkBytes, 2 * chunkBytes + 5),
      ),
      fill: fc.integer({ min: 0, max: 255 }),
    });
    await fc.assert(
      fc.asyncProperty(
        sizeBytes,
        fc.array(change, { minLength: 30, maxLength: 120 }),
        async (size, changes) => {
          const before = randomBytes(size);
          let wanted = Buffer.from(before);
          const path = join(directory, 'file');
          const after = await edited(path, before, async (file) => {
            for (const { reads, at, align, lengthBytes, fill } of changes) {
              const position = Math.floor((at * wanted.length) / 1000 / align) * align;
              if (reads && position < wanted.length) {
                const length = Math.min(lengthBytes, wanted.length - position);
                const read = await file.read(position, length);
                if (!read.equals(wanted.subarray(position, position + length)))
                  throw new Error('read differs');
                continue;
              }
              const data = Buffer.alloc(lengthBytes, fill);
              const end = position + lengthBytes;
              if (end > wanted.length) wanted = Buffer.concat([wanted, Buffer.alloc(end - wanted.length)]);
              data.copy(wanted, position);
              await file.write(position, data);
            }
          });
          if (!after.content.equals(wanted)) throw new Error('the file differs');
          if (after.sums !== sumsFor(wanted)) throw new Error('its digests differ');
        },
      ),
      { numRuns: 60, seed, endOnFailure: true },
    );
  },
);

void t.test('of a chunk that is written anew nothing is read, of any other all is compared', async (t) => {
  const path = join(await directoryFor(t), 'file');
  const content = randomBytes(3 * chunkBytes);
  const damaged = Buffer.from(content);
  damaged[chunkBytes + 700_000] = 1 + (damaged[chunkBytes + 700_000] ?? 0);
  const write = async (lengthBytes: number): Promise<string> => {
    const edit = (file: EditedFile): Promise<void> => file.write(chunkBytes, Buffer.alloc(lengthBytes, 7));
    return (await edited(path, content, edit, damaged)).sums;
  };
  const wanted = Buffer.from(content);
  wanted.fill(7, chunkBytes, 2 * chunkBytes);
  t.equal(await write(chunkBytes), sumsFor(wanted), 'the damage is gone');
  await t.rejects(write(chunkBytes - 1), { message: /not what was stored/ });
});
