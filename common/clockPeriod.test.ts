import t from 'tap';
import { parseClockPeriod } from './clockPeriod.ts';

const weekly = (days: readonly number[], fromMinute: number, toMinute: number) => ({
  kind: 'weekly',
  days: new Set(days),
  fromMinute,
  toMinute,
});

void t.test('times of each day, of some days, and days of the calendar', (t) => {
  t.same(parseClockPeriod('08:00-18:30'), weekly([0, 1, 2, 3, 4, 5, 6], 480, 1110));
  t.same(parseClockPeriod('22:00 - 06:00'), weekly([0, 1, 2, 3, 4, 5, 6], 1320, 1800));
  t.same(parseClockPeriod('sat,sun 00:00-24:00'), weekly([6, 0], 0, 1440));
  t.same(parseClockPeriod('Fri-Mon 20:00-00:00'), weekly([5, 6, 0, 1], 1200, 1440));
  t.same(parseClockPeriod('mon 23:59-24:00'), weekly([1], 1439, 1440));
  const dates = { kind: 'dates', firstDayMs: Date.UTC(2026, 11, 24), lastDayMs: Date.UTC(2027, 0, 2) };
  t.same(parseClockPeriod('2026-12-24..2027-01-02'), dates);
  t.same(parseClockPeriod('2026-12-24'), { ...dates, lastDayMs: dates.firstDayMs });
  t.end();
});

void t.test('what is neither is refused, and told what to write', (t) => {
  for (const [text, message] of [
    ['', /expected times such as/],
    ['night', /expected times such as/],
    ['8:00-18:00', /expected times such as/],
    ['22:00', /expected times such as/],
    ['08:00-25:00', /00:00 to 23:59/],
    ['08:60-09:00', /00:00 to 23:59/],
    ['08:00-24:01', /00:00 to 23:59/],
    ['24:00-06:00', /begins before 24:00/],
    ['08:00-08:00', /whole day is 00:00-24:00/],
    ['1-5 08:00-18:00', /"1-5" is neither a day of the week \(sun, mon/],
    ['mon- 08:00-18:00', /neither/],
    ['mon-tue-wed 08:00-18:00', /neither/],
    ['2026-02-30', /no day 2026-02-30/],
    ['2026-12-24..2026-12-23', /2026-12-23 is before 2026-12-24/],
  ] as const)
    t.throws(() => parseClockPeriod(text), { name: 'RangeError', message }, text);
  t.end();
});
