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

/** In bytes. */
interface Units {
  readonly cluster: number;
  readonly granule: number;
  /** So many are reckoned with. */
  readonly cuts: number;
  /** The image stands on another one. */
  readonly isBacked?: boolean;
}

/** What is told of each byte. */
function toldOf(dirty: readonly boolean[], zero: readonly boolean[], units: Units): readonly string[] {
  const found = changesOf(
    stretchesOf(dirty).map(({ flag, ...stretch }) => ({ ...stretch, dirty: flag })),
    stretchesOf(zero).map(({ flag, ...stretch }) => ({ ...stretch, zero: flag })),
    { clusterBytes: units.cluster, granuleBytes: units.granule, cuts: units.cuts },
  );
  const kinds: string[] = Array.from({ length: dirty.length }, () => 'same');
  let end = 0;
  for (const { offsetBytes, lengthBytes, zero: isZero, unmarked } of found) {
    if (offsetBytes < end || lengthBytes <= 0) throw new Error('out of order');
    end = offsetBytes + lengthBytes;
    kinds.fill(unmarked === true ? 'unmarked' : isZero ? 'zero' : 'data', offsetBytes, end);
  }
  return kinds;
}

void t.test(
  'what is dirty is a change, zeros too; zeros that no shrink can have made are named as that',
  async (t) => {
    const seed = Date.now();
    t.comment(`seed ${seed}`);
    const flags = fc.array(fc.boolean(), { minLength: size, maxLength: size });
    fc.assert(
      fc.property(flags, flags, fc.integer({ min: 1, max: 9 }), (dirty, zero, cuts) => {
        const told = toldOf(dirty, zero, { cluster: 1, granule: 1, cuts });
        const kept = [...dirty.keys()].filter((at) => dirty[at] === false && zero[at] === false);
        const doubtFrom = kept.at(-cuts) ?? 0;
        for (const [at, kind] of told.entries()) {
          const [data, zeros] =
            at < doubtFrom && dirty[at] === false ? ['same', 'unmarked'] : ['data', 'zero'];
          const wanted = zero[at] === true ? zeros : data;
          if (kind !== wanted) throw new Error(`${at} is ${kind} instead of ${wanted}`);
        }
      }),
      { seed },
    );
  },
);

/** An image as QEMU keeps it: data by cluster, marks by granule; a shrink forgets both behind the new end. */
class Image {
  readonly #cluster: number;
  readonly #granule: number;
  readonly #isBacked: boolean;
  /** 0 is zero. What stands in a cluster that is not there is 0. */
  content: number[] = Array.from({ length: size }, () => 0);
  allocated: boolean[];
  marks: boolean[];

  constructor({ cluster, granule, isBacked = false }: Units) {
    this.#isBacked = isBacked;
    this.#cluster = cluster;
    this.#granule = granule;
    this.allocated = Array.from({ length: size / cluster }, () => false);
    this.marks = Array.from({ length: size / granule }, () => false);
  }

  get dirty(): readonly boolean[] {
    return this.content.map((_, at) => this.marks[Math.floor(at / this.#granule)] === true);
  }

  get zero(): readonly boolean[] {
    return this.content.map((_, at) => this.allocated[Math.floor(at / this.#cluster)] === false);
  }

  write(first: number, end: number, value: number): void {
    for (let at = first; at < end; at++) {
      this.content[at] = value;
      this.allocated[Math.floor(at / this.#cluster)] = true;
      this.marks[Math.floor(at / this.#granule)] = true;
    }
  }

  /** Whole clusters. */
  discard(first: number, end: number): void {
    for (let cluster = Math.ceil(first / this.#cluster); (cluster + 1) * this.#cluster <= end; cluster++) {
      const start = cluster * this.#cluster;
      this.allocated[cluster] = false;
      this.content.fill(0, start, start + this.#cluster);
      for (let at = start; at < start + this.#cluster; at++)
        this.marks[Math.floor(at / this.#granule)] = true;
    }
  }

  /** And a growth to what it was: the rest of a cluster keeps its data, or gets zeros; its granules lose their marks. */
  shrinkAndGrow(to: number): void {
    const kept = Math.ceil(to / this.#cluster) * this.#cluster;
    this.content.fill(0, this.#isBacked ? to : kept);
    if (this.#isBacked && to < kept) this.allocated[kept / this.#cluster - 1] = true;
    this.allocated.fill(false, kept / this.#cluster);
    this.marks.fill(false, Math.ceil(to / this.#granule));
  }
}

/** A chunk is the parent's unless something told touches it, or nothing stands in it but zeros. */
function isMissed(image: Image, before: readonly number[], units: Units, chunk: number): number | null {
  const told = toldOf(image.dirty, image.zero, units);
  for (let first = 0; first < size; first += chunk) {
    const kinds = told.slice(first, first + chunk);
    const isRead = kinds.some((kind) => kind === 'data' || kind === 'zero');
    if (isRead || kinds.every((kind) => kind === 'unmarked')) continue;
    for (let at = first; at < first + chunk; at++) if (image.content[at] !== before[at]) return at;
  }
  return null;
}

type Act =
  | {
      readonly kind: 'write' | 'discard';
      readonly at: number;
      readonly length: number;
      readonly value: number;
    }
  | { readonly kind: 'shrink'; readonly at: number };

const writes: fc.Arbitrary<Act> = fc.record({
  kind: fc.constantFrom('write', 'discard'),
  at: fc.integer({ min: 0, max: size - 1 }),
  length: fc.integer({ min: 1, max: 20 }),
  value: fc.integer({ min: 1, max: 200 }),
});
const shrinks: fc.Arbitrary<Act> = fc.record({
  kind: fc.constant('shrink'),
  at: fc.integer({ min: 0, max: size }),
});

function carryOut(image: Image, acts: readonly Act[]): void {
  for (const act of acts) {
    if (act.kind === 'shrink') image.shrinkAndGrow(act.at);
    else {
      const end = Math.min(size, act.at + act.length);
      if (act.kind === 'write') image.write(act.at, end, act.value);
      else image.discard(act.at, end);
    }
  }
}

void t.test('no history of an image leaves a change out', async (t) => {
  const seed = Date.now();
  t.comment(`seed ${seed}`);
  const history = fc.array(fc.oneof({ weight: 4, arbitrary: writes }, { weight: 1, arbitrary: shrinks }), {
    maxLength: 12,
  });
  const check = (units: Units, setup: readonly Act[], acts: readonly Act[]) => {
    const image = new Image(units);
    carryOut(image, setup);
    image.marks = image.marks.map(() => false);
    const before = [...image.content];
    carryOut(image, acts);
    for (const chunk of [1, 4, 16]) {
      const missed = isMissed(image, before, units, chunk);
      if (missed !== null) throw new Error(`${missed} in chunks of ${chunk} is missed`);
    }
  };
  await t.test('shrunk however often, where a mark covers a cluster', async () => {
    const layouts = fc.constantFrom({ cluster: 4, granule: 4, cuts: 1 }, { cluster: 2, granule: 8, cuts: 1 });
    fc.assert(fc.property(layouts, history, history, check), { seed, numRuns: 3000 });
  });
  for (const cuts of [1, 2, 4])
    await t.test(
      `shrunk ${cuts} times, where a cluster has several marks, or stands on another image`,
      async () => {
        const cut = fc
          .tuple(shrinks, fc.array(writes, { maxLength: 4 }))
          .map(([shrink, later]) => [shrink, ...later]);
        const some = fc
          .tuple(fc.array(writes, { maxLength: 4 }), fc.array(cut, { minLength: 1, maxLength: cuts }))
          .map(([earlier, later]) => [...earlier, ...later.flat()]);
        const layouts = fc.constantFrom<Units>(
          { cluster: 8, granule: 2, cuts },
          { cluster: 4, granule: 1, cuts },
          { cluster: 8, granule: 2, cuts, isBacked: true },
          { cluster: 4, granule: 4, cuts, isBacked: true },
        );
        fc.assert(fc.property(layouts, history, some, check), { seed, numRuns: 3000 });
      },
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
