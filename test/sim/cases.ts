import type { LivingAgent } from './site.ts';
import { randomFrom } from './history.ts';

/*
 * STILLPOINT_TEST_SEED repeats a choice of cases; with STILLPOINT_TEST_EXHAUSTIVE=1 all of them are tried.
 */
export const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 1_000_000);
export const isExhaustive = process.env['STILLPOINT_TEST_EXHAUSTIVE'] === '1';
const random = randomFrom(seed);
/** Most of a case in which calls fail is waiting between attempts. */
const concurrency = 8;

/** Runs cases a few at a time. */
export async function inTurn<T>(cases: readonly T[], run: (one: T) => Promise<void>): Promise<void> {
  const waiting = [...cases];
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await run(next);
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
}

/** As many as asked for, by the seed, and those that found a fault once; all of them when asked for. */
export function sample<T>(
  from: readonly T[],
  count: number,
  once: (value: T) => boolean = () => false,
): readonly T[] {
  if (isExhaustive) return from;
  const ranked = from
    .map((value) => ({ value, rank: once(value) ? -1 : random() }))
    .toSorted((a, b) => a.rank - b.rank);
  return ranked.filter(({ rank }, index) => rank < 0 || index < count).map(({ value }) => value);
}

/** The file system of the journal is full; gives back how to make room. */
export function fillJournal({ journal }: LivingAgent): () => void {
  const full = (): never => {
    throw Object.assign(new Error('database or disk is full'), { code: 'ERR_SQLITE_ERROR', errcode: 13 });
  };
  const overridden = ['write', 'end', 'publishProgress', 'takeOver'] as const;
  for (const name of overridden) Object.defineProperty(journal, name, { value: full, configurable: true });
  return () => {
    for (const name of overridden) Reflect.deleteProperty(journal, name);
  };
}
