/** How long a span is written: a whole number and a unit. */
export const spanPattern = /^([1-9]\d{0,4})(h|d|w|mo|y)$/;

const hourMs = 3_600_000;
const fixedUnits: ReadonlyMap<string, number> = new Map([
  ['h', hourMs],
  ['d', 24 * hourMs],
  ['w', 7 * 24 * hourMs],
]);

/**
 * The moment that lies a span such as `36h`, `14d`, `8w`, `6mo` or `2y` before another one. A day has 24 hours,
 * whatever the clocks do; months and years go by the calendar (UTC): a month before March 31st is the last day of
 * February.
 *
 * @throws RangeError for what is not a span; check it with `spanPattern`
 */
export function momentBefore(moment: Date, span: string): Date {
  const [, count = '', unit = ''] = spanPattern.exec(span) ?? [];
  if (count === '') throw new RangeError(`not a span of time: ${JSON.stringify(span)}`);
  const unitMs = fixedUnits.get(unit);
  if (unitMs !== undefined) return new Date(moment.getTime() - Number(count) * unitMs);
  const before = new Date(moment);
  before.setUTCDate(1);
  before.setUTCMonth(moment.getUTCMonth() - Number(count) * (unit === 'y' ? 12 : 1));
  const lastDay = new Date(before);
  lastDay.setUTCMonth(before.getUTCMonth() + 1, 0);
  before.setUTCDate(Math.min(moment.getUTCDate(), lastDay.getUTCDate()));
  return before;
}

/** How the time between two runs is written: a whole number and a unit of fixed length. */
export const intervalPattern = /^([1-9]\d{0,4})(min|h|d|w)$/;

/**
 * Milliseconds of an interval such as `30min`, `4h`, `1d` or `2w`; a day has 24 hours, whatever the clocks do.
 *
 * @throws RangeError for what is not an interval; check it with `intervalPattern`
 */
export function intervalMs(interval: string): number {
  const [, count = '', unit = ''] = intervalPattern.exec(interval) ?? [];
  const unitMs = unit === 'min' ? hourMs / 60 : fixedUnits.get(unit);
  if (unitMs === undefined) throw new RangeError(`not an interval of time: ${JSON.stringify(interval)}`);
  return Number(count) * unitMs;
}
