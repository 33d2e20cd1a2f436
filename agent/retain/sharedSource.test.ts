import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import type { VolumeSource } from '../../common/volumeSource.ts';
import { joined, pieceBytes, SharedSource, type Stretch, stretchesOf } from './sharedSource.ts';

const blockBytes = pieceBytes;
const blocks = 60;
const wanted: readonly Stretch[] = [{ start: 0, end: blocks * blockBytes }];

/** A source that tells what it was asked for; every block holds its own number. */
function sourceThatCounts(): { readonly source: VolumeSource; readonly asked: number[] } {
  const asked: number[] = [];
  const source: VolumeSource = {
    virtualSizeBytes: blocks * blockBytes,
    extents: () => Promise.resolve([]),
    readInto: async (target, offsetBytes, signal) => {
      asked.push(offsetBytes / blockBytes);
      await turn();
      signal?.throwIfAborted();
      target.fill(offsetBytes / blockBytes);
    },
  };
  return { source, asked };
}

/** Reads everything in order, some blocks ahead; waits between them as long as `pause` says. */
async function readAll(
  reader: VolumeSource,
  first: number,
  pause: (block: number) => Promise<void>,
): Promise<number> {
  const ahead = 8;
  let right = 0;
  const reads = new Map<number, Promise<Buffer>>();
  for (let next = first; next < blocks + ahead; next += 1) {
    if (next < blocks) {
      const target = Buffer.alloc(blockBytes, 255);
      reads.set(
        next,
        reader.readInto(target, next * blockBytes).then(() => target),
      );
    }
    const done = await reads.get(next - ahead);
    if (done?.every((byte) => byte === (next - ahead) % 256) === true) right += 1;
    await pause(next);
  }
  return right;
}

void t.test('what several readers read, however fast each is, is read once', async (t) => {
  const { source, asked } = sourceThatCounts();
  const shared = new SharedSource(source, wanted, new AbortController().signal);
  const paces = [0, 3, 1];
  const right = await Promise.all(
    paces
      .map((pace) => ({ pace, reader: shared.join() }))
      .map(async ({ pace, reader }) => {
        using leaving = reader;
        return await readAll(leaving, 0, async () => {
          for (let turns = 0; turns < pace; turns += 1) await turn();
        });
      }),
  );
  t.same(right, [blocks, blocks, blocks], 'each has got every block');
  t.same(
    asked.toSorted((a, b) => a - b),
    [...Array(blocks).keys()],
    'and the source was asked for each once',
  );
});

void t.test(
  'a reader that is far ahead waits for the others, and goes on alone when they leave',
  async (t) => {
    const { source, asked } = sourceThatCounts();
    const shared = new SharedSource(source, wanted, new AbortController().signal);
    const [fast, slow] = [shared.join(), shared.join()];
    const reading = readAll(fast, 0, () => Promise.resolve());
    for (let turns = 0; turns < 500; turns += 1) await turn();
    t.equal(asked.length, 20, 'no more is kept');
    await slow.readInto(Buffer.alloc(blockBytes), 5 * blockBytes);
    for (let turns = 0; turns < 50; turns += 1) await turn();
    t.equal(asked.length, 21, 'the first one is not wanted any more');
    shared.leave(slow);
    t.equal(await reading, blocks);
    t.equal(asked.length, blocks);
  },
);

void t.test('readers that want different things keep nobody waiting', async (t) => {
  const { source } = sourceThatCounts();
  const shared = new SharedSource(source, wanted, new AbortController().signal);
  const [one, other] = [shared.join(), shared.join()];
  const none = (): Promise<void> => Promise.resolve();
  const right = await Promise.all([
    readAll(one, 0, none).finally(() => shared.leave(one)),
    readAll(other, 30, none).finally(() => shared.leave(other)),
  ]);
  t.same(right, [blocks, blocks - 30]);
});

void t.test('a source that fails, or a job that ends, is told to every reader', async (t) => {
  const { source } = sourceThatCounts();
  const ending = new AbortController();
  const shared = new SharedSource(source, wanted, ending.signal);
  const readers = [shared.join(), shared.join()];
  const reason = new Error('the job has ended');
  ending.abort(reason);
  for (const reader of readers) await t.rejects(reader.readInto(Buffer.alloc(blockBytes), 0), reason);
});

void t.test('readers that read in other pieces share them, and each gets what it asks for', async (t) => {
  const { source, asked } = sourceThatCounts();
  const shared = new SharedSource(
    source,
    [{ start: blockBytes, end: 4 * blockBytes }],
    new AbortController().signal,
  );
  const [one, other] = [shared.join(), shared.join()];
  const target = Buffer.alloc(2 * blockBytes);
  await one.readInto(target, blockBytes * 1.5);
  t.same([target[0], target[blockBytes], target.at(-1)], [1, 2, 3]);
  t.same(asked, [1, 2, 3], 'whole pieces are read');
  const small = Buffer.alloc(512);
  await other.readInto(small, blockBytes);
  await other.readInto(small, 3 * blockBytes);
  t.equal(small[0], 3);
  t.same(asked, [1, 2, 3], 'and serve what is in them');
  const across = Buffer.alloc(2 * blockBytes);
  await other.readInto(across, 3 * blockBytes);
  t.same([across[0], across.at(-1)], [3, 4]);
  t.same(asked, [1, 2, 3, 4], 'what nobody was to read is read all the same');
});

void t.test('what is read in units of several sizes is joined', (t) => {
  const changes = [
    { offsetBytes: 10, lengthBytes: 5, zero: false },
    { offsetBytes: 15, lengthBytes: 30, zero: true },
    { offsetBytes: 45, lengthBytes: 5, zero: false },
  ];
  t.same(stretchesOf(changes, 8, 48), [
    { start: 8, end: 16 },
    { start: 40, end: 48 },
  ]);
  t.same(joined([...stretchesOf(changes, 8, 52), ...stretchesOf(changes, 32, 52)]), [{ start: 0, end: 52 }]);
  t.same(
    joined([
      { start: 4, end: 6 },
      { start: 0, end: 2 },
      { start: 2, end: 3 },
    ]),
    [
      { start: 0, end: 3 },
      { start: 4, end: 6 },
    ],
  );
  t.end();
});
