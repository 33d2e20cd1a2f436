import { randomFrom } from './history.ts';

/*
 * What crash matrices share. The seed is fixed, so that a run can be repeated: STILLPOINT_TEST_SEED sets another, and
 * with STILLPOINT_TEST_EXHAUSTIVE=1 every combination is tried instead of a sample.
 */
export const matrixSeed = Number(process.env['STILLPOINT_TEST_SEED'] ?? 20_261_120);
export const isMatrixExhaustive = process.env['STILLPOINT_TEST_EXHAUSTIVE'] === '1';
const concurrency = 3;

/** Runs the cases a few at a time; the name of a case tells how to see it again. */
export async function inTurn<T>(cases: readonly T[], run: (one: T) => Promise<unknown>): Promise<void> {
  const waiting = [...cases];
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await run(next);
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
}

/** Gives all of a list, or as many as asked for, by the seed. */
export function sampler(
  random: () => number = randomFrom(matrixSeed),
): <T>(from: readonly T[], count: number) => readonly T[] {
  return (from, count) =>
    isMatrixExhaustive
      ? from
      : from
          .map((value) => ({ value, rank: random() }))
          .toSorted((a, b) => a.rank - b.rank)
          .slice(0, count)
          .map(({ value }) => value);
}
