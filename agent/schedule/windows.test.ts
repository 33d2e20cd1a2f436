import * as fc from 'fast-check';
import t from 'tap';
import { parseClockPeriod } from '../../common/clockPeriod.ts';
import { closedAt, nextOpen, type Windows } from './windows.ts';
import { ZoneClock } from './zone.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed}`);

const minuteMs = 60_000;
const dayMs = 86_400_000;
const zurich = new ZoneClock('Europe/Zurich');
const lordHowe = new ZoneClock('Australia/Lord_Howe');
const nuuk = new ZoneClock('America/Nuuk');

function when(windows: readonly string[], blackouts: readonly string[] = []): Windows {
  return { windows: windows.map(parseClockPeriod), blackouts: blackouts.map(parseClockPeriod) };
}

/** When runs may begin next, in Zürich. */
function openAfter(windows: Windows, time: string): string | null {
  const openMs = nextOpen(windows, Date.parse(time), zurich);
  return openMs === null ? null : new Date(openMs).toISOString().slice(0, 16);
}

void t.test('runs begin in a window, and not in a blackout', (t) => {
  const nights = when(['22:00-06:00']);
  t.equal(openAfter(nights, '2026-11-22T12:00:00Z'), '2026-11-22T21:00');
  t.equal(openAfter(nights, '2026-11-22T21:00:00Z'), '2026-11-22T21:00');
  t.equal(openAfter(nights, '2026-11-22T04:59:00Z'), '2026-11-22T04:59');
  t.equal(openAfter(nights, '2026-11-22T05:00:00Z'), '2026-11-22T21:00', 'the end does not belong to it');
  const weekend = when(['fri-sat 20:00-08:00', 'sun 12:00-13:00']);
  t.equal(openAfter(weekend, '2026-11-22T06:30:00Z'), '2026-11-22T06:30', 'the night that began on Saturday');
  t.equal(openAfter(weekend, '2026-11-22T08:00:00Z'), '2026-11-22T11:00');
  t.equal(openAfter(weekend, '2026-11-22T12:00:00Z'), '2026-11-27T19:00');
  const holidays = when([], ['2026-12-24..2027-01-02', 'mon-fri 08:00-18:00']);
  t.equal(openAfter(holidays, '2026-12-23T12:00:00Z'), '2026-12-23T17:00');
  t.equal(openAfter(holidays, '2026-12-24T00:00:00Z'), '2027-01-02T23:00');
  t.equal(closedAt(holidays, Date.parse('2026-12-23T12:00:00Z'), zurich), 'blackout');
  t.equal(closedAt(nights, Date.parse('2026-12-23T12:00:00Z'), zurich), 'outside-windows');
  t.equal(closedAt(when([]), 0, zurich), null);
  t.end();
});

void t.test('where nothing is ever open, that is found out', (t) => {
  t.equal(openAfter(when(['mon 08:00-09:00'], ['00:00-24:00']), '2026-11-22T12:00:00Z'), null);
  t.equal(openAfter(when(['2026-11-01..2026-11-20']), '2026-11-22T12:00:00Z'), null);
  t.equal(openAfter(when(['sun 02:00-03:00'], ['sat 22:00-06:00']), '2026-11-22T12:00:00Z'), null);
  t.equal(openAfter(when(['2029-05-01'], ['08:00-00:00']), '2026-11-22T12:00:00Z'), '2029-04-30T22:00');
  t.end();
});

void t.test('the clocks decide, also when they change', (t) => {
  const early = when(['02:00-02:30']);
  t.equal(
    openAfter(early, '2026-03-28T12:00:00Z'),
    '2026-03-30T00:00',
    'a window that does not exist does not open',
  );
  t.equal(openAfter(when(['02:30-04:00']), '2026-03-28T12:00:00Z'), '2026-03-29T01:00');
  t.equal(openAfter(early, '2026-10-25T00:10:00Z'), '2026-10-25T00:10');
  t.equal(
    openAfter(early, '2026-10-25T00:40:00Z'),
    '2026-10-25T01:00',
    'and one that comes twice opens twice',
  );
  t.end();
});

void t.test('the next opening is the first minute that is open', (t) => {
  const quarters = fc.oneof(
    fc.integer({ min: 0, max: 95 }),
    // Those at which the clocks change.
    fc.integer({ min: 4, max: 14 }),
    fc.integer({ min: 88, max: 95 }),
  );
  const time = quarters.map((quarter) => {
    const hours = String(Math.floor(quarter / 4)).padStart(2, '0');
    return `${hours}:${String((quarter % 4) * 15).padStart(2, '0')}`;
  });
  const days = fc.constantFrom('', 'sun ', 'mon-fri ', 'sat-sun ', 'sun,wed ');
  const weekly = fc
    .tuple(days, time, time)
    .filter(([, from, to]) => from !== to)
    .map(([on, from, to]) => `${on}${from}-${to}`);
  const dates = fc
    .tuple(fc.integer({ min: 1, max: 28 }), fc.constantFrom('2026-03', '2026-04', '2026-10'))
    .map(([day, month]) => `${month}-${String(day).padStart(2, '0')}`);
  const anyPeriods = fc.array(fc.oneof({ weight: 4, arbitrary: weekly }, dates), { maxLength: 3 });
  const anyStart = fc
    .tuple(
      fc.constantFrom(zurich, lordHowe, nuuk),
      fc.constantFrom('2026-01-10T12:00Z', '2026-06-10T12:00Z'),
      fc.oneof(fc.integer({ min: -48 * 60, max: 48 * 60 }), fc.integer({ min: -120, max: 120 })),
    )
    .map(([clock, season, minutes]) => {
      const changeMs = clock.stretchAt(Date.parse(season)).endMs;
      return [clock, changeMs + minutes * minuteMs] as const;
    });
  const property = fc.property(anyPeriods, anyPeriods, anyStart, (windows, blackouts, [clock, fromMs]) => {
    const rules = when(windows, blackouts);
    const openMs = nextOpen(rules, fromMs, clock);
    for (let atMs = fromMs; atMs < fromMs + 10 * dayMs; atMs += 15 * minuteMs - (atMs % (15 * minuteMs)))
      if (closedAt(rules, atMs, clock) === null) return openMs === atMs;
    return openMs === null || openMs >= fromMs + 10 * dayMs;
  });
  fc.assert(property, { seed, numRuns: 2000 });
  t.end();
});
