import * as z from 'zod';
import { momentBefore, spanPattern } from '../common/span.ts';

/** Two spans are compared from here. */
const anyDay = new Date('2026-03-01T00:00:00Z');

const keptPeriods = z
  .int('expected a whole number, without a unit')
  .nonnegative('expected 0 or more')
  .optional();
/** Which backups stay: every one that any of these rules keeps. */
export const keep = z.strictObject({
  last: keptPeriods.describe('So many newest ones.'),
  hourly: keptPeriods.describe('The newest of each hour, for so many hours that have one.'),
  daily: keptPeriods.describe('The newest of each day, for so many days that have one.'),
  weekly: keptPeriods.describe(
    'The newest of each ISO week (Monday first), for so many weeks that have one.',
  ),
  monthly: keptPeriods.describe('The newest of each month, for so many months that have one.'),
  yearly: keptPeriods.describe('The newest of each year, for so many years that have one.'),
  within: z
    .string('expected a span such as "36h", "14d", "8w", "6mo" or "2y"')
    .regex(spanPattern, 'expected a span such as "36h", "14d", "8w", "6mo" or "2y"')
    .optional()
    .describe('All that are younger.'),
});

export type Keep = z.output<typeof keep>;

const periods = ['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const;

/** Rules that keep all that either of two keeps. */
export function atLeast(one: Keep, other: Keep): Keep {
  const both: Keep = {};
  for (const period of periods) {
    const count = Math.max(one[period] ?? 0, other[period] ?? 0);
    if (count > 0) both[period] = count;
  }
  const [within] = [one.within, other.within].filter((span) => span !== undefined).toSorted(longestFirst);
  return within === undefined ? both : { ...both, within };
}

/** Months and years are as long as the calendar says: from a day on which February is before. */
function longestFirst(a: string, b: string): number {
  return momentBefore(anyDay, a).getTime() - momentBefore(anyDay, b).getTime();
}
