import * as fc from 'fast-check';
import t from 'tap';
import { ZeroMap } from './zeroMap.ts';

void t.test('a map says of every position what the extents say', async (t) => {
  const seed = Date.now();
  t.comment(`seed ${seed}`);
  const stretches = fc.array(fc.record({ lengthBytes: fc.integer({ min: 1, max: 5 }), zero: fc.boolean() }), {
    minLength: 1,
    maxLength: 12,
  });
  fc.assert(
    fc.property(stretches, (list) => {
      const flags = list.flatMap(({ lengthBytes, zero }) => Array.from({ length: lengthBytes }, () => zero));
      let offsetBytes = 0;
      const extents = list.map((stretch) => {
        const extent = { ...stretch, offsetBytes };
        offsetBytes += stretch.lengthBytes;
        return extent;
      });
      const map = ZeroMap.of(extents, flags.length);
      for (const [at, zero] of flags.entries()) {
        const stretch = map.stretchAt(at);
        if (map.isZero(stretch) !== zero) throw new Error(`${at} is not ${zero}`);
        const change = flags.findIndex((flag, index) => index >= at && flag !== zero);
        const end = change === -1 ? flags.length : change;
        if (map.endOf(stretch) !== end) throw new Error(`the stretch of ${at} ends at ${map.endOf(stretch)}`);
        if (map.nextData(at) !== (zero ? end : at))
          throw new Error(`data after ${at} at ${map.nextData(at)}`);
        for (let length = 1; at + length <= flags.length; length += 1)
          if (map.isZeroRange(at, length) !== (zero && at + length <= end))
            throw new Error(`${length} at ${at}`);
      }
    }),
    { seed },
  );
});

void t.test('extents with a gap, out of order or of another size are an error', async (t) => {
  const extent = (
    offsetBytes: number,
    lengthBytes: number,
  ): { offsetBytes: number; lengthBytes: number; zero: boolean } => ({
    offsetBytes,
    lengthBytes,
    zero: true,
  });
  for (const extents of [
    [extent(1, 9)],
    [extent(0, 5), extent(6, 4)],
    [extent(0, 5), extent(4, 6)],
    [extent(0, 5)],
    [extent(0, 11)],
    [extent(0, 10), extent(10, 0)],
    [],
  ])
    t.throws(() => ZeroMap.of(extents, 10), /gap/);
  t.equal(ZeroMap.of([], 0).nextData(0), 0);
});
