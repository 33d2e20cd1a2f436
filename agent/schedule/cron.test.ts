import * as fc from 'fast-check';
import t from 'tap';
import { type CronFields, parseCron } from '../../common/cron.ts';
import { lastCron, nextCron } from './cron.ts';
import { ZoneClock } from './zone.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed}`);

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;
/** Zones of every kind: an hour, half an hour, across midnight, south of the equator, Ramadan, without changes. */
const zoneNames = [
  'Europe/Zurich',
  'America/New_York',
  'Australia/Lord_Howe',
  'America/Nuuk',
  'Africa/Cairo',
  'Africa/Casablanca',
  'America/St_Johns',
  'Asia/Kathmandu',
  'Pacific/Apia',
  'UTC',
] as const;
const zones = new Map(zoneNames.map((name) => [name, new ZoneClock(name)]));
const clockOf = (name: (typeof zoneNames)[number]): ZoneClock => zones.get(name) ?? new ZoneClock(name);

/** All that is due in [from, to). */
function dueBetween(line: string, zone: (typeof zoneNames)[number], from: string, to: string): string[] {
  const due: string[] = [];
  let atMs: number | null = Date.parse(from) - 1;
  while ((atMs = nextCron(parseCron(line), atMs, clockOf(zone))) !== null && atMs < Date.parse(to))
    due.push(new Date(atMs).toISOString().slice(0, 16));
  return due;
}

/** What Intl says that the clocks show, as clock time; nothing of ours in it. */
const formats = new Map<string, Intl.DateTimeFormat>();
function shownBy(timeZone: string, instantMs: number): number {
  const format =
    formats.get(timeZone) ??
    new Intl.DateTimeFormat('sv-SE', { timeZone, dateStyle: 'short', timeStyle: 'medium' });
  formats.set(timeZone, format);
  return Date.parse(`${format.format(instantMs).replace(' ', 'T')}Z`);
}

function names(cron: CronFields, shownMs: number): boolean {
  const shown = new Date(shownMs);
  const ofMonth = cron.daysOfMonth.has(shown.getUTCDate());
  const ofWeek = cron.daysOfWeek.has(shown.getUTCDay());
  return (
    cron.minutes.has(shown.getUTCMinutes()) &&
    cron.hours.has(shown.getUTCHours()) &&
    cron.months.has(shown.getUTCMonth() + 1) &&
    (cron.eitherDay ? ofMonth || ofWeek : ofMonth && ofWeek)
  );
}

/** The rule by brute force: looks at the clocks each minute of two days, and remembers what they have shown. */
function dueByLooking(cron: CronFields, timeZone: string, fromMs: number): readonly number[] {
  const due: number[] = [];
  let highestMs = Number.NEGATIVE_INFINITY;
  let beforeMs = shownBy(timeZone, fromMs - dayMs - minuteMs);
  const eachHour = cron.hours.size === 24;
  for (let atMs = fromMs - dayMs; atMs < fromMs + 2 * dayMs; atMs += minuteMs) {
    const shownMs = shownBy(timeZone, atMs);
    let isDue = names(cron, shownMs) && (eachHour || shownMs > highestMs);
    const overTo = eachHour ? beforeMs : shownMs;
    for (let overMs = beforeMs + minuteMs; overMs < overTo; overMs += minuteMs) isDue ||= names(cron, overMs);
    highestMs = Math.max(highestMs, shownMs);
    beforeMs = shownMs;
    if (isDue && atMs > fromMs) due.push(atMs);
  }
  return due;
}

void t.test('each field decides, and days of month and week are either where both are named', (t) => {
  const cases: readonly (readonly [string, readonly string[]])[] = [
    ['0 2 * * *', ['2026-11-22T02:00', '2026-11-23T02:00', '2026-11-24T02:00']],
    ['*/30 2-3 22 nov *', ['2026-11-22T02:00', '2026-11-22T02:30', '2026-11-22T03:00', '2026-11-22T03:30']],
    ['0 4 * * mon-fri', ['2026-11-23T04:00', '2026-11-24T04:00']],
    ['0 4 * * sat-sun', ['2026-11-22T04:00']],
    ['0 4 23 * 7', ['2026-11-22T04:00', '2026-11-23T04:00']],
    // Not either: a field that begins with a star restricts nothing of its own accord.
    ['0 4 */2 * 0', []],
    ['0 4 */2 * 1', ['2026-11-23T04:00']],
    ['@daily', ['2026-11-22T00:00', '2026-11-23T00:00', '2026-11-24T00:00']],
    ['@weekly', ['2026-11-22T00:00']],
    ['@monthly', []],
  ];
  for (const [line, due] of cases)
    t.same(dueBetween(line, 'UTC', '2026-11-22T00:00:00Z', '2026-11-25T00:00:00Z'), due, line);
  t.same(dueBetween('30 23 29 2 *', 'UTC', '2026-01-01T00:00:00Z', '2035-01-01T00:00:00Z'), [
    '2028-02-29T23:30',
    '2032-02-29T23:30',
  ]);
  t.end();
});

void t.test('a time that the clocks jump over is due once, when they jump', (t) => {
  for (const line of ['30 2 * * *', '0,20,40 2 * * *', '*/10 2 29 3 *', '0 2,3 * * *'])
    t.same(
      dueBetween(line, 'Europe/Zurich', '2026-03-28T23:00:00Z', '2026-03-29T12:00:00Z'),
      ['2026-03-29T01:00'],
      line,
    );
  // 23:30 of March 28th does not exist in Nuuk, and belongs to no other day.
  t.same(dueBetween('30 23 * * *', 'America/Nuuk', '2026-03-27T12:00:00Z', '2026-03-30T12:00:00Z'), [
    '2026-03-28T01:30',
    '2026-03-29T01:00',
    '2026-03-30T00:30',
  ]);
  // Half an hour.
  t.same(dueBetween('10 2 * * *', 'Australia/Lord_Howe', '2026-10-03T00:00:00Z', '2026-10-04T00:00:00Z'), [
    '2026-10-03T15:30',
  ]);
  t.end();
});

void t.test('a time that the clocks show twice is due once, the first time', (t) => {
  t.same(dueBetween('30 2 * * *', 'Europe/Zurich', '2026-10-24T22:00:00Z', '2026-10-26T12:00:00Z'), [
    '2026-10-25T00:30',
    '2026-10-26T01:30',
  ]);
  t.same(dueBetween('0,30 1-3 * * *', 'Europe/Zurich', '2026-10-24T22:00:00Z', '2026-10-25T12:00:00Z'), [
    '2026-10-24T23:00',
    '2026-10-24T23:30',
    '2026-10-25T00:00',
    '2026-10-25T00:30',
    '2026-10-25T02:00',
    '2026-10-25T02:30',
  ]);
  t.end();
});

void t.test('a line for every hour is due in each hour that goes by', (t) => {
  const spring = dueBetween('30 * * * *', 'Europe/Zurich', '2026-03-28T23:00:00Z', '2026-03-29T04:00:00Z');
  t.same(
    spring.map((time) => time.slice(11)),
    ['23:30', '00:30', '01:30', '02:30', '03:30'],
  );
  const autumn = dueBetween('30 * * * *', 'Europe/Zurich', '2026-10-24T22:00:00Z', '2026-10-25T04:00:00Z');
  t.same(
    autumn.map((time) => time.slice(11)),
    ['22:30', '23:30', '00:30', '01:30', '02:30', '03:30'],
  );
  for (const zone of zoneNames)
    t.equal(
      dueBetween('* * * * *', zone, '2026-10-01T00:00:00Z', '2026-11-05T00:00:00Z').length,
      35 * 24 * 60,
      zone,
    );
  t.end();
});

void t.test('what is due is what looking at the clocks each minute says', (t) => {
  const list = (min: number, max: number, most: number): fc.Arbitrary<string> =>
    fc
      .uniqueArray(fc.integer({ min, max }), { minLength: 1, maxLength: most })
      .map((items) => items.join(','));
  const anyLine = fc
    .record({
      minute: fc.oneof(fc.constantFrom('*', '*/7', '*/20'), list(0, 59, 4)),
      hour: fc.oneof(fc.constantFrom('*', '*/2', '0-23', '22-23', '0-4'), list(0, 23, 6), list(0, 3, 3)),
      day: fc.oneof(fc.constantFrom('*', '*', '*/2', '20-31', '1-10'), list(1, 28, 20)),
      week: fc.oneof(fc.constantFrom('*', '*', 'sat-sun', '1-5', '*/2'), list(0, 7, 4)),
    })
    .map(({ minute, hour, day, week }) => `${minute} ${hour} ${day} * ${week}`);
  const anyStart = fc.tuple(fc.constantFrom(...zoneNames), fc.double({ min: 0, max: 1, noNaN: true })).chain(
    // Near a change of the clocks, where there is one, and elsewhere.
    ([zone, when]) => {
      const stretch = clockOf(zone).stretchAt(Date.UTC(2025, 0, 1) + when * 5 * 365 * dayMs);
      return fc.record({
        zone: fc.constant(zone),
        fromMs: fc
          .integer({ min: -50 * 60, max: 30 * 60 })
          .map((minutes) => Math.floor(stretch.startMs / minuteMs + minutes) * minuteMs),
      });
    },
  );
  const property = fc.property(anyLine, anyStart, (line, { zone, fromMs }) => {
    const cron = parseCron(line);
    const untilMs = fromMs + 2 * dayMs - minuteMs;
    const due: number[] = [];
    let atMs: number | null = fromMs;
    while ((atMs = nextCron(cron, atMs, clockOf(zone))) !== null && atMs <= untilMs) due.push(atMs);
    const expected = dueByLooking(cron, zone, fromMs);
    const last = lastCron(cron, { afterMs: fromMs, untilMs }, clockOf(zone));
    return JSON.stringify(due) === JSON.stringify(expected) && last === (expected.at(-1) ?? null);
  });
  fc.assert(property, { seed, numRuns: 80 });
  t.end();
});

void t.test('a day that is far away is found past all changes of the clocks', (t) => {
  const due = (line: string, after: string): string | undefined => {
    const dueMs = nextCron(parseCron(line), Date.parse(after), clockOf('Europe/Zurich'));
    return dueMs === null ? undefined : new Date(dueMs).toISOString().slice(0, 16);
  };
  t.equal(due('0 2 29 2 *', '2026-11-22T00:00:00Z'), '2028-02-29T01:00');
  t.equal(due('0 * 29 2 *', '2026-11-22T00:00:00Z'), '2028-02-28T23:00');
  t.equal(due('30 2 28 3 *', '2025-10-01T00:00:00Z'), '2026-03-28T01:30');
  t.equal(due('30 2 29 3 *', '2025-10-01T00:00:00Z'), '2026-03-29T01:00', 'a time that does not exist');
  t.equal(due('30 2 25 10 *', '2025-10-27T00:00:00Z'), '2026-10-25T00:30');
  // Just before midnight falls back to 23:00 in Nuuk: the day is not over, and is in each hour that goes by.
  const nuuk = nextCron(
    parseCron('30 * 24 10 *'),
    Date.parse('2026-10-25T00:45:00Z'),
    clockOf('America/Nuuk'),
  );
  t.equal(nuuk, Date.parse('2026-10-25T01:30:00Z'));
  t.end();
});

void t.test('the newest of what is due is found at once, however long ago the beginning is', (t) => {
  const last = (line: string, after: string, until: string): string | undefined => {
    const range = { afterMs: Date.parse(after), untilMs: Date.parse(until) };
    const dueMs = lastCron(parseCron(line), range, clockOf('Europe/Zurich'));
    return dueMs === null ? undefined : new Date(dueMs).toISOString().slice(0, 16);
  };
  t.equal(last('* * * * *', '2006-01-01T00:00:00Z', '2026-11-22T10:20:30Z'), '2026-11-22T10:20');
  t.equal(last('0 2 * * *', '2006-01-01T00:00:00Z', '2026-11-22T00:59:59Z'), '2026-11-21T01:00');
  t.equal(last('0 2 * * *', '2026-11-21T01:00:00Z', '2026-11-22T01:00:00Z'), '2026-11-22T01:00');
  t.equal(last('0 2 * * *', '2026-11-22T01:00:00Z', '2026-11-23T00:59:59Z'), undefined);
  t.equal(last('0 0 29 2 *', '2001-01-01T00:00:00Z', '2026-11-22T00:00:00Z'), '2024-02-28T23:00');
  t.end();
});

void t.test('the clocks of a zone lead to an instant and back', (t) => {
  const zurich = clockOf('Europe/Zurich');
  const at = (time: string): number => Date.parse(`${time}Z`);
  const cases = [
    ['2026-11-22T12:00', '2026-11-22T11:00', '2026-11-22T11:00', false],
    ['2026-03-29T02:30', '2026-03-29T01:00', '2026-03-29T01:00', true],
    ['2026-10-25T02:30', '2026-10-25T00:30', '2026-10-25T01:30', false],
    ['2026-10-25T03:00', '2026-10-25T02:00', '2026-10-25T02:00', false],
  ] as const;
  for (const [shown, first, last, skipped] of cases)
    t.same(zurich.instantsOf(at(shown)), { firstMs: at(first), lastMs: at(last), skipped }, shown);
  // Samoa went over a whole day to the other side of the date line.
  const apia = clockOf('Pacific/Apia').instantsOf(at('2011-12-30T12:00'));
  t.same(apia, { firstMs: at('2011-12-30T10:00'), lastMs: at('2011-12-30T10:00'), skipped: true });
  t.throws(() => new ZoneClock('Europe/Atlantis'), RangeError);
  const anyMoment = fc.integer({ min: at('2000-01-01T00:00'), max: at('2037-01-01T00:00') });
  const property = fc.property(fc.constantFrom(...zoneNames), anyMoment, (zone, instantMs) => {
    const shownMs = clockOf(zone).clockAt(instantMs);
    const { firstMs, lastMs, skipped } = clockOf(zone).instantsOf(shownMs);
    const second = Math.floor(instantMs / 1000) * 1000;
    return (
      Math.floor(shownMs / 1000) * 1000 === shownBy(zone, second) &&
      !skipped &&
      (firstMs === instantMs || lastMs === instantMs)
    );
  });
  fc.assert(property, { seed, numRuns: 500 });
  t.end();
});
