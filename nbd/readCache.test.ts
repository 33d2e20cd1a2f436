import t from 'tap';
import { ReadCache } from './readCache.ts';

const blockBytes = 4096;
const fillWith =
  (value: number) =>
  async (target: Buffer): Promise<void> =>
    void target.fill(value);

void t.test('the block that was not asked for the longest goes first', async (t) => {
  const cache = new ReadCache({ blockBytes, maxBytes: 3 * blockBytes });
  for (const key of [0, 1, 2]) await cache.read(key, blockBytes, fillWith(key));
  t.equal(cache.get(0)?.[0], 0);
  await cache.read(3, 100, fillWith(3));
  t.same(
    [0, 1, 2, 3].map((key) => cache.get(key)?.[0]),
    [0, undefined, 2, 3],
  );
  t.equal(cache.heldBytes, 2 * blockBytes + 100);
});

void t.test('many ask, one reads; a failure is told to all of them and forgotten', async (t) => {
  const cache = new ReadCache({ blockBytes });
  let loads = 0;
  const gate = Promise.withResolvers<void>();
  const load = async (target: Buffer): Promise<void> => {
    loads += 1;
    await gate.promise;
    target.fill(9);
  };
  const reads = [1, 2, 3].map(() => cache.read(5, blockBytes, load));
  t.equal(cache.heldBytes, blockBytes, 'what is being read counts');
  t.ok(cache.isEnough(5));
  const failure = new Error('gone');
  gate.reject(failure);
  for (const read of reads) await t.rejects(read, failure);
  t.equal(loads, 1);
  t.equal(cache.heldBytes, 0);
  t.notOk(cache.isEnough(5));
  t.equal((await cache.read(5, blockBytes, fillWith(7)))[0], 7);
});

void t.test(
  'what is being read pushes out what is there, and beyond the bound is given out but not kept',
  async (t) => {
    const cache = new ReadCache({ blockBytes, maxBytes: 2 * blockBytes });
    await cache.read(0, blockBytes, fillWith(0));
    const gate = Promise.withResolvers<void>();
    const reads = [1, 2, 3].map((key) => cache.read(key, blockBytes, () => gate.promise));
    t.equal(cache.get(0), undefined);
    t.ok(cache.isEnough(4), 'nothing is read ahead into a cache that is busy');
    gate.resolve();
    await Promise.all(reads);
    t.equal(cache.heldBytes, 2 * blockBytes);
  },
);

void t.test('volumes do not share blocks, and take theirs with them', async (t) => {
  const cache = new ReadCache({ blockBytes });
  const [first, second] = [cache.addVolume(1e12), cache.addVolume(1e12)];
  const last = 2 ** 32 - 1;
  await cache.read(cache.keyOf(first, last), blockBytes, fillWith(1));
  await cache.read(cache.keyOf(second, 0), blockBytes, fillWith(2));
  t.not(cache.keyOf(first, last), cache.keyOf(second, 0));
  cache.removeVolume(first);
  t.equal(cache.get(cache.keyOf(first, last)), undefined);
  t.equal(cache.get(cache.keyOf(second, 0))?.[0], 2);
  t.equal(cache.heldBytes, blockBytes);
  t.throws(() => cache.addVolume(2 ** 32 * blockBytes + 1), RangeError);
});

void t.test('sizes that are none are refused', async (t) => {
  for (const options of [
    { blockBytes: 5000 },
    { blockBytes: 2048 },
    { blockBytes: 8 * 1024 * 1024 },
    { blockBytes: 65_536, maxBytes: 65_535 },
    { maxBytes: Number.NaN },
  ])
    t.throws(() => new ReadCache(options), RangeError);
});
