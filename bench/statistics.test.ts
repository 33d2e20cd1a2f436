import t from 'tap';
import { median, paired, summarize } from './statistics.ts';

void t.test('the median of an even and of an odd number of values', async (t) => {
  t.equal(median([3, 1, 2]), 2);
  t.equal(median([4, 1, 2, 3]), 2.5);
  t.throws(() => median([]), /no values/);
});

void t.test('a series is summed up with its spread, and pairs keep their order', async (t) => {
  t.same(summarize([1.26, 3, 2]), { n: 3, min: 1.3, median: 2, max: 3 });
  t.same(
    paired([3, 5], [1, 9], (x, y) => x - y),
    [2, -4],
  );
  t.throws(() => paired([1], [], (x) => x), /length/);
});
