/** The five fields of a cron line, as sets of numbers. */
export interface CronFields {
  /** As it was written. */
  readonly text: string;
  readonly minutes: ReadonlySet<number>;
  readonly hours: ReadonlySet<number>;
  readonly daysOfMonth: ReadonlySet<number>;
  /** From 1. */
  readonly months: ReadonlySet<number>;
  /** From 0, Sunday. */
  readonly daysOfWeek: ReadonlySet<number>;
  /** Both fields of days say something, so that a day that fits either is one (crontab(5)). */
  readonly eitherDay: boolean;
}

interface FieldRule {
  readonly name: string;
  readonly min: number;
  readonly max: number;
  readonly names?: readonly string[];
}

const rules = {
  minutes: { name: 'minute', min: 0, max: 59 },
  hours: { name: 'hour', min: 0, max: 23 },
  daysOfMonth: { name: 'day of the month', min: 1, max: 31 },
  months: {
    name: 'month',
    min: 1,
    max: 12,
    names: ['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec'],
  },
  daysOfWeek: {
    name: 'day of the week',
    min: 0,
    max: 7,
    names: ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'],
  },
} as const satisfies Record<string, FieldRule>;

const nicknames: ReadonlyMap<string, string> = new Map([
  ['@yearly', '0 0 1 1 *'],
  ['@annually', '0 0 1 1 *'],
  ['@monthly', '0 0 1 * *'],
  ['@weekly', '0 0 * * 0'],
  ['@daily', '0 0 * * *'],
  ['@midnight', '0 0 * * *'],
  ['@hourly', '0 * * * *'],
]);

const longestMonths = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/**
 * Reads a cron line as crontab(5) describes it: minute, hour, day of the month, month, day of the week; lists, ranges,
 * steps, names of months and days in any case, Sunday as 0 or 7, and nicknames such as `@daily`. What other programs
 * have added to it (seconds, `L`, `W`, `#`, `?`) is refused.
 *
 * @throws RangeError that names the field, what is wrong, and what is allowed
 */
export function parseCron(text: string): CronFields {
  const line = text.startsWith('@') ? ofNickname(text) : text;
  const fields = line.trim().split(/\s+/);
  const [minute = '', hour = '', dayOfMonth = '', month = '', dayOfWeek = ''] = fields;
  if (fields.length !== 5)
    throw new RangeError(
      `expected the five fields of cron (minute, hour, day of the month, month, day of the week), such as "0 2 * * *", or @daily; there ${fields.length === 1 ? 'is one' : `are ${fields.length}`}`,
    );
  const parsed: CronFields = {
    text,
    minutes: parseField(minute, rules.minutes),
    hours: parseField(hour, rules.hours),
    daysOfMonth: parseField(dayOfMonth, rules.daysOfMonth),
    months: parseField(month, rules.months),
    // 7 is Sunday too.
    daysOfWeek: new Set([...parseField(dayOfWeek, rules.daysOfWeek)].map((day) => day % 7)),
    // As in crontab(5): a field that starts with `*` does not count as restricted, also with a step.
    eitherDay: !dayOfMonth.startsWith('*') && !dayOfWeek.startsWith('*'),
  };
  if (!parsed.eitherDay && !hasADay(parsed))
    throw new RangeError(`there is no such day: ${dayOfMonth} is in none of the months ${month}`);
  return parsed;
}

function ofNickname(text: string): string {
  const line = nicknames.get(text);
  if (line !== undefined) return line;
  throw new RangeError(`${JSON.stringify(text)} is none of ${[...nicknames.keys()].join(', ')}`);
}

/** Whether there is ever such a day: of February 29th there is one in each day of the week. */
function hasADay({ daysOfMonth, months }: CronFields): boolean {
  return [...months].some((month) => [...daysOfMonth].some((day) => day <= (longestMonths[month - 1] ?? 0)));
}

function parseField(text: string, rule: FieldRule): ReadonlySet<number> {
  const numbers = new Set<number>();
  for (const item of text.split(',')) for (const number of parseItem(item, rule)) numbers.add(number);
  return numbers;
}

/** One item of a list: `5`, `mon`, `1-5`, `*`, `1-30/5` or `*` with a step. */
function* parseItem(item: string, rule: FieldRule): Iterable<number> {
  const [, range = '', stepText] = /^([^/]*)(?:\/(.*))?$/s.exec(item) ?? [];
  const step = stepText === undefined ? 1 : parseStep(stepText, item, rule);
  const [first, last] = parseRange(range, item, rule);
  if (stepText !== undefined && last === undefined)
    throw problem(item, rule, `a step needs a range to go through, such as ${first}-${rule.max}/${step}`);
  for (let number = first; number <= (last ?? first); number += step) yield number;
}

function parseStep(text: string, item: string, rule: FieldRule): number {
  const step = /^\d{1,3}$/.test(text) ? Number(text) : 0;
  if (step >= 1 && step <= rule.max) return step;
  throw problem(item, rule, `expected a step from 1 to ${rule.max}`);
}

function parseRange(text: string, item: string, rule: FieldRule): readonly [number, number | undefined] {
  // Of the two Sundays that a week has here, all days have one.
  if (text === '*') return [rule.min, rule === rules.daysOfWeek ? 6 : rule.max];
  const [first = '', last, ...more] = text.split('-');
  if (more.length > 0) throw problem(item, rule, 'expected a range such as 1-5');
  const from = parseNumber(first, item, rule);
  if (last === undefined) return [from, undefined];
  const to = parseNumber(last, item, rule);
  // A week of names begins wherever one likes, and ends with Sunday as well as it begins with it.
  const end = rule === rules.daysOfWeek && to === 0 && from > 0 ? 7 : to;
  if (from > end)
    throw problem(item, rule, `${first} is after ${last}; write two ranges, separated by a comma`);
  return [from, end];
}

function parseNumber(text: string, item: string, rule: FieldRule): number {
  const named = rule.names?.indexOf(text.toLowerCase()) ?? -1;
  if (named >= 0) return named + rule.min;
  const number = /^\d{1,4}$/.test(text) ? Number(text) : Number.NaN;
  if (number >= rule.min && number <= rule.max) return number;
  throw problem(item, rule, `${JSON.stringify(text)} is not allowed`);
}

function problem(item: string, { name, min, max, names }: FieldRule, what: string): RangeError {
  const named = names === undefined ? '' : `, ${names[0]} to ${names.at(-1)}`;
  return new RangeError(
    `${name} ${JSON.stringify(item)}: ${what} (allowed: ${min} to ${max}${named}; lists 1,2, ranges 1-5, steps */5)`,
  );
}
