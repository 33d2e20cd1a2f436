/** Part of each week, by the clocks of a place. */
export interface WeeklyPeriod {
  readonly kind: 'weekly';
  /** The days on which it begins; from 0, Sunday. */
  readonly days: ReadonlySet<number>;
  readonly fromMinute: number;
  /** It ends before this minute, counted from the day of its beginning: past midnight it is more than 1440. */
  readonly toMinute: number;
}

/** Days of the calendar, the last one with it, each as its beginning in UTC. */
export interface DatePeriod {
  readonly kind: 'dates';
  readonly firstDayMs: number;
  readonly lastDayMs: number;
}

export type ClockPeriod = WeeklyPeriod | DatePeriod;

const dayNames = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'];
const forms =
  'expected times such as "22:00-06:00", with days before them if not each ("mon-fri 22:00-06:00"), or dates such as "2026-12-24..2027-01-02"';
const weeklyForm = /^(?:(\S+) +)?(\d{2}):(\d{2}) ?- ?(\d{2}):(\d{2})$/;
const datesForm = /^(\d{4}-\d{2}-\d{2})(?: ?\.\. ?(\d{4}-\d{2}-\d{2}))?$/;

/**
 * Reads a part of the week, such as `22:00-06:00` (into the next day), `sat,sun 00:00-24:00` or `mon-fri 08:00-18:00`,
 * in which days are those on which it begins; or days of the calendar, such as `2026-12-24..2027-01-02` or `2026-12-31`.
 *
 * @throws RangeError that says what is wrong, and what is allowed
 */
export function parseClockPeriod(text: string): ClockPeriod {
  const dates = datesForm.exec(text);
  if (dates !== null) return parseDates(dates[1] ?? '', dates[2] ?? dates[1] ?? '');
  const [form, days, ...times] = weeklyForm.exec(text) ?? [];
  if (form === undefined) throw new RangeError(forms);
  const [fromHour = 0, fromMinutes = 0, toHour = 0, toMinutes = 0] = times.map(Number);
  const fromMinute = minuteOf(fromHour, fromMinutes);
  const toMinute = minuteOf(toHour, toMinutes);
  if (fromMinute === 1440) throw new RangeError('a period begins before 24:00');
  if (fromMinute === toMinute)
    throw new RangeError('a period ends at another time than it begins; a whole day is 00:00-24:00');
  return {
    kind: 'weekly',
    days: days === undefined ? new Set(dayNames.keys()) : parseDays(days),
    fromMinute,
    toMinute: toMinute < fromMinute ? toMinute + 1440 : toMinute,
  };
}

function minuteOf(hour: number, minute: number): number {
  const minutes = hour * 60 + minute;
  if (hour > 24 || minute > 59 || minutes > 1440)
    throw new RangeError('a time of day is 00:00 to 23:59, or 24:00 at the end');
  return minutes;
}

function parseDays(text: string): ReadonlySet<number> {
  const days = new Set<number>();
  for (const item of text.toLowerCase().split(',')) {
    const [first = '', last = first, ...more] = item.split('-');
    const from = dayNames.indexOf(first);
    const to = dayNames.indexOf(last);
    if (from < 0 || to < 0 || more.length > 0)
      throw new RangeError(
        `${JSON.stringify(item)} is neither a day of the week (${dayNames.join(', ')}) nor a range such as mon-fri`,
      );
    // Days in a row, beginning wherever one likes: fri-mon.
    for (let day = from; day !== to; day = (day + 1) % 7) days.add(day);
    days.add(to);
  }
  return days;
}

function parseDates(first: string, last: string): DatePeriod {
  const [firstDayMs, lastDayMs] = [dayOf(first), dayOf(last)];
  if (lastDayMs < firstDayMs) throw new RangeError(`${last} is before ${first}`);
  return { kind: 'dates', firstDayMs, lastDayMs };
}

function dayOf(date: string): number {
  const dayMs = Date.parse(`${date}T00:00:00Z`);
  // Date.parse may turn February 30th into March: only what reads back the same is a date.
  if (Number.isNaN(dayMs) || new Date(dayMs).toISOString().slice(0, 10) !== date)
    throw new RangeError(`there is no day ${date}`);
  return dayMs;
}
