import * as fc from 'fast-check';
import t from 'tap';
import { changesOf } from './changes.ts';

const size = 64;

/** Stretches of one kind that end where the flags change. */
function stretchesOf(
  flags: readonly boolean[],
): readonly { offsetBytes: number; lengthBytes: number; flag: boolean }[] {
  const stretches: { offsetBytes: number; lengthBytes: number; flag: boolean }[] = [];
  for (const [offsetBytes, flag] of flags.entries()) {
    const last = stretches.at(-1);
    if (last?.flag === flag) last.lengthBytes += 1;
    else stretches.push({ offsetBytes, lengthBytes: 1, flag });
  }
  return stretches;
}

void t.test('zeros are changes, dirty or not; of the rest what is dirty', async (t) => {
  const seed = Date.now();
  t.comment(`seed ${seed}`);
  const flags = fc.array(fc.boolean(), { minLength: size, maxLength: size });
  fc.assert(
    fc.property(flags, flags, (dirty, zero) => {
      const found = changesOf(
        stretchesOf(dirty).map(({ flag, ...stretch }) => ({ ...stretch, dirty: flag })),
        stretchesOf(zero).map(({ flag, ...stretch }) => ({ ...stretch, zero: flag })),
      );
      const kinds: string[] = Array.from({ length: size }, () => 'same');
      let end = 0;
      for (const { offsetBytes, lengthBytes, zero: isZero } of found) {
        if (offsetBytes < end || lengthBytes <= 0) throw new Error('out of order');
        end = offsetBytes + lengthBytes;
        kinds.fill(isZero ? 'zero' : 'data', offsetBytes, end);
      }
      for (const [at, kind] of kinds.entries()) {
        const wanted = zero[at] === true ? 'zero' : dirty[at] === true ? 'data' : 'same';
        if (kind !== wanted) throw new Error(`${at} is ${kind} instead of ${wanted}`);
      }
    }),
    { seed },
  );
});

void t.test('a bitmap of another size is an error, and no gap', async (t) => {
  t.same(changesOf([], []), []);
  t.throws(
    () =>
      changesOf(
        [{ offsetBytes: 0, lengthBytes: 5, dirty: false }],
        [{ offsetBytes: 0, lengthBytes: 6, zero: false }],
      ),
    /ends at 5/,
  );
});
