import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import type { VolumeSource } from '../../common/volumeSource.ts';
import { SharedSource } from './sharedSource.ts';

const blockBytes = 16;
const blocks = 200;

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
  const shared = new SharedSource(source, new AbortController().signal);
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
  t.same(asked, [...Array(blocks).keys()], 'and the source was asked for each once, in order');
});

void t.test(
  'a reader that is far ahead waits for the others, and goes on alone when they leave',
  async (t) => {
    const { source, asked } = sourceThatCounts();
    const shared = new SharedSource(source, new AbortController().signal);
    const [fast, slow] = [shared.join(), shared.join()];
    const reading = readAll(fast, 0, () => Promise.resolve());
    for (let turns = 0; turns < 500; turns += 1) await turn();
    t.equal(asked.length, 16, 'no more is kept');
    await slow.readInto(Buffer.alloc(blockBytes), 0);
    for (let turns = 0; turns < 50; turns += 1) await turn();
    t.equal(asked.length, 17);
    shared.leave(slow);
    t.equal(await reading, blocks);
    t.equal(asked.length, blocks);
  },
);

void t.test('readers that want different things keep nobody waiting', async (t) => {
  const { source } = sourceThatCounts();
  const shared = new SharedSource(source, new AbortController().signal);
  const [one, other] = [shared.join(), shared.join()];
  const none = (): Promise<void> => Promise.resolve();
  const right = await Promise.all([
    readAll(one, 0, none).finally(() => shared.leave(one)),
    readAll(other, 100, none).finally(() => shared.leave(other)),
  ]);
  t.same(right, [blocks, blocks - 100]);
});

void t.test('a source that fails, or a job that ends, is told to every reader', async (t) => {
  const { source } = sourceThatCounts();
  const ending = new AbortController();
  const shared = new SharedSource(source, ending.signal);
  const readers = [shared.join(), shared.join()];
  const reason = new Error('the job has ended');
  ending.abort(reason);
  for (const reader of readers) await t.rejects(reader.readInto(Buffer.alloc(blockBytes), 0), reason);
});
