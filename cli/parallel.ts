/** What may go on at a time. */
export interface ParallelLimits<T> {
  /** Pieces of work altogether. */
  readonly total: number;
  /** What a piece of work uses, such as storages. */
  readonly uses: (item: T) => readonly string[];
  /** How many pieces may use one of these at a time; without limit where it says nothing. */
  readonly limitOf: (used: string) => number | undefined;
}

/**
 * Does `run` for every item, as many at a time as the limits allow. An item that has to wait for something it uses
 * lets later ones pass; otherwise they begin in their order.
 * @param run must not reject
 */
export async function runLimited<T>(
  items: readonly T[],
  limits: ParallelLimits<T>,
  run: (item: T) => Promise<void>,
): Promise<void> {
  const waiting = [...items];
  const inUse = new Map<string, number>();
  const running = new Set<Promise<void>>();
  const count = (item: T, change: 1 | -1): void => {
    for (const used of limits.uses(item)) inUse.set(used, (inUse.get(used) ?? 0) + change);
  };
  const isFree = (item: T): boolean =>
    limits.uses(item).every((used) => (inUse.get(used) ?? 0) < (limits.limitOf(used) ?? Infinity));
  while (waiting.length > 0 || running.size > 0) {
    const next = running.size < limits.total ? waiting.findIndex(isFree) : -1;
    const [item] = next === -1 ? [] : waiting.splice(next, 1);
    if (item === undefined) {
      await Promise.race(running);
      continue;
    }
    count(item, 1);
    const work = run(item).finally(() => {
      count(item, -1);
      running.delete(work);
    });
    running.add(work);
  }
}
