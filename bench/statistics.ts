/** Middle value; of an even number of values the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  const upper = sorted[Math.floor(middle)];
  const lower = sorted[Math.ceil(middle) - 1];
  if (upper === undefined || lower === undefined) throw new Error('no values');
  return (lower + upper) / 2;
}

/** What is printed of a series: rounded, with its spread. */
export interface Summary {
  readonly n: number;
  readonly min: number;
  readonly median: number;
  readonly max: number;
}

export function summarize(values: readonly number[], digits = 1): Summary {
  const round = (value: number): number => Number(value.toFixed(digits));
  return {
    n: values.length,
    min: round(Math.min(...values)),
    median: round(median(values)),
    max: round(Math.max(...values)),
  };
}

/** Differences of two series taken in turn, pair by pair. */
export function paired(
  a: readonly number[],
  b: readonly number[],
  combine: (x: number, y: number) => number,
): number[] {
  return a.map((x, index) => {
    const y = b[index];
    if (y === undefined) throw new Error('the series differ in length');
    return combine(x, y);
  });
}
