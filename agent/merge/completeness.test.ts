import { array, assert, integer, property, tuple } from 'fast-check';
import t from 'tap';

import type { ImageExtent } from '../../common/qemuImage.ts';
import { firstGap } from './completeness.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);

function extent(start: number, length: number): ImageExtent {
  return { start, length, depth: 0, present: true, data: true, zero: false };
}

/** Ascending extents that do not overlap, from pairs of gap and length. */
const extents = array(tuple(integer({ min: 0, max: 4 }), integer({ min: 1, max: 6 })), { maxLength: 12 }).map(
  (pairs) => {
    let position = 0;
    return pairs.map(([gap, length]) => {
      const start = position + gap;
      position = start + length;
      return extent(start, length);
    });
  },
);

/** Byte by byte. */
function naiveGap(needed: readonly ImageExtent[], held: readonly ImageExtent[]): number | undefined {
  for (const { start, length } of needed) {
    for (let byte = start; byte < start + length; byte += 1) {
      if (!held.some((one) => byte >= one.start && byte < one.start + one.length)) return byte;
    }
  }
  return undefined;
}

void t.test(
  `the first byte that a merged image lacks is found as by looking at each (seed ${seed})`,
  async (t) => {
    assert(
      property(extents, extents, (needed, held) => firstGap(needed, held) === naiveGap(needed, held)),
      { seed, numRuns: 5000 },
    );
    t.equal(firstGap([], []), undefined);
    t.equal(firstGap([extent(0, 10)], []), 0);
    t.equal(firstGap([extent(0, 10)], [extent(0, 4), extent(4, 6)]), undefined);
    t.equal(firstGap([extent(0, 10)], [extent(0, 4), extent(5, 6)]), 4);
    t.equal(firstGap([extent(2, 2), extent(6, 2)], [extent(0, 100)]), undefined, 'one extent serves several');
  },
);

void t.test('an image with hundreds of thousands of extents is compared in one pass', async (t) => {
  const count = 300_000;
  const needed = Array.from({ length: count }, (_, index) => extent(index * 10, 5));
  const held = Array.from({ length: count * 2 }, (_, index) => extent(index * 5, 5));
  const started = performance.now();
  t.equal(firstGap(needed, held), undefined);
  t.equal(firstGap([...needed, extent(count * 10, 1)], held), count * 10);
  const tookMs = performance.now() - started;
  t.ok(tookMs < 2000, `${Math.round(tookMs)} ms`);
});
