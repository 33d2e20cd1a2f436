export const periodKinds = ['hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const;
export type PeriodKind = (typeof periodKinds)[number];

/** The time zone of this host, by its IANA name. */
export function hostTimeZone(): string {
  return new Intl.DateTimeFormat().resolvedOptions().timeZone;
}

/**
 * Names the hour, day, week, month and year that a moment lies in by the clocks of a time zone: `2026-11-20`,
 * `2026-W47` (ISO 8601: Monday first, week 1 has the year's first Thursday), … An hour's name carries the distance
 * from UTC, because one of them comes twice when the clocks go back: `2026-10-25T02+02:00`.
 *
 * @throws RangeError for what is no time zone
 */
export class Calendar {
  readonly #format: Intl.DateTimeFormat;

  constructor(timeZone: string) {
    this.#format = new Intl.DateTimeFormat('en-u-ca-gregory-nu-latn', {
      timeZone,
      hourCycle: 'h23',
      year: 'numeric',
      month: '2-digit',
      day: '2-digit',
      hour: '2-digit',
      timeZoneName: 'longOffset',
    });
  }

  periodsOf(moment: Date): Readonly<Record<PeriodKind, string>> {
    const parts = new Map(this.#format.formatToParts(moment).map(({ type, value }) => [type, value]));
    const part = (type: Intl.DateTimeFormatPartTypes): string => parts.get(type) ?? '';
    const year = part('year').padStart(4, '0');
    const month = `${year}-${part('month')}`;
    const day = `${month}-${part('day')}`;
    const offset = part('timeZoneName').replace('GMT', '') || '+00:00';
    return {
      hourly: `${day}T${part('hour')}${offset}`,
      daily: day,
      weekly: isoWeekOf(day),
      monthly: month,
      yearly: year,
    };
  }
}

const dayMs = 24 * 3_600_000;

/** The ISO week of a date like `2026-11-20`: it belongs to the year of its Thursday. */
function isoWeekOf(day: string): string {
  // As a day without a clock: counting days in UTC knows no changes of the clocks.
  const date = new Date(`${day}T00:00:00.000Z`);
  const daysSinceMonday = (date.getUTCDay() + 6) % 7;
  const thursday = new Date(date.getTime() + (3 - daysSinceMonday) * dayMs);
  const year = thursday.getUTCFullYear();
  const week = 1 + Math.floor((thursday.getTime() - Date.UTC(year, 0, 1)) / (7 * dayMs));
  return `${String(year).padStart(4, '0')}-W${String(week).padStart(2, '0')}`;
}
