import * as fc from 'fast-check';
import t from 'tap';
import { Calendar, periodKinds } from './periods.ts';
import {
  damagedReason,
  decideRetention,
  type KeepRules,
  type RetentionCandidate,
  type RetentionCircumstances,
} from './retention.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed}`);
const settings = { seed, numRuns: 1000 };
const now = new Date('2026-11-20T12:00:00.000Z');
const hourMs = 3_600_000;

function backupAt(
  pointInTime: string,
  options: Partial<Omit<RetentionCandidate, 'pointInTime'>> = {},
): RetentionCandidate {
  return { id: pointInTime, good: true, protected: false, pointInTime, ...options };
}

/** One after the other, so many hours apart; the last one an hour before `now`. */
function series(count: number, everyHours: number): readonly RetentionCandidate[] {
  return Array.from({ length: count }, (_, index) =>
    backupAt(new Date(now.getTime() - hourMs - (count - 1 - index) * everyHours * hourMs).toISOString()),
  );
}

/** What stays, newest first, each with its reasons. */
function kept(
  backups: readonly RetentionCandidate[],
  keep: KeepRules | null,
  circumstances: Partial<RetentionCircumstances> = {},
): readonly (readonly [string, readonly string[]])[] {
  return decideRetention(backups, { keep, timeZone: 'UTC', now, ...circumstances })
    .filter((decision) => decision.keep)
    .map(({ backup, reasons }) => [backup.pointInTime, reasons] as const)
    .toReversed();
}

void t.test('what its storage has locked stays until the lock is over, and counts as any other', (t) => {
  const backups = series(4, 24).map((backup, index) => ({
    ...backup,
    lockedUntil: index === 1 ? '2026-11-30T00:00:00.000Z' : '2026-11-19T00:00:00.000Z',
  }));
  t.same(
    kept(backups, { last: 1 }).map(([, reasons]) => reasons),
    [['last 1 (1st)', 'the last good one'], ['locked until 2026-11-30T00:00:00.000Z']],
  );
  t.same(kept(backups, { last: 1 }, { now: new Date('2026-11-30T00:00:00.001Z') }).length, 1);
  t.end();
});

const anyRules: fc.Arbitrary<KeepRules> = fc.record(
  {
    last: fc.integer({ min: 0, max: 4 }),
    hourly: fc.integer({ min: 0, max: 4 }),
    daily: fc.integer({ min: 0, max: 4 }),
    weekly: fc.integer({ min: 0, max: 4 }),
    monthly: fc.integer({ min: 0, max: 4 }),
    yearly: fc.integer({ min: 0, max: 4 }),
    within: fc.constantFrom('3h', '2d', '3w', '5mo', '1y'),
  },
  { requiredKeys: [] },
);
/** Hours before `now`, near ones and far ones; some in the future. Half an hour off, so that zones matter. */
const anyTime = fc
  .oneof(
    fc.integer({ min: 0, max: 80 }),
    fc.integer({ min: 0, max: 24 * 90 }),
    fc.integer({ min: 0, max: 24 * 1200 }),
    fc.integer({ min: -30, max: -1 }),
  )
  .map((hours) => new Date(now.getTime() - hours * hourMs - hourMs / 2).toISOString());
const anyBackup = fc.record({
  id: fc.integer({ min: 0, max: 1_000_000 }).map(String),
  pointInTime: anyTime,
  good: fc.constantFrom(true, true, true, false),
  protected: fc.constantFrom(false, false, false, false, true),
});
const anyBackups = fc.uniqueArray(anyBackup, { selector: ({ id }) => id, maxLength: 30 });
const anyZone = fc.constantFrom('UTC', 'Europe/Zurich', 'America/New_York', 'Asia/Kathmandu', 'Pacific/Apia');

function forAll(
  check: (backups: readonly RetentionCandidate[], rules: RetentionCircumstances) => boolean,
): void {
  const property = fc.property(anyBackups, anyRules, anyZone, (backups, keep, timeZone) =>
    check(backups, { keep, timeZone, now }),
  );
  fc.assert(property, settings);
}

void t.test('each rule keeps what its name says, and says so', (t) => {
  const daily = series(60, 24);
  t.same(kept(daily, { last: 2, daily: 3, weekly: 2, monthly: 2, yearly: 5 }), [
    [
      '2026-11-20T11:00:00.000Z',
      [
        'last 2 (1st)',
        'daily 2026-11-20',
        'weekly 2026-W47',
        'monthly 2026-11',
        'yearly 2026',
        'the last good one',
      ],
    ],
    ['2026-11-19T11:00:00.000Z', ['last 2 (2nd)', 'daily 2026-11-19']],
    ['2026-11-18T11:00:00.000Z', ['daily 2026-11-18']],
    ['2026-11-15T11:00:00.000Z', ['weekly 2026-W46']],
    ['2026-10-31T11:00:00.000Z', ['monthly 2026-10']],
  ]);
  t.same(
    kept(series(5, 1), { hourly: 2 }).map(([, reasons]) => reasons[0]),
    ['hourly 2026-11-20T11+00:00', 'hourly 2026-11-20T10+00:00'],
  );
  t.same(
    kept(daily, { within: '3d' }).map(([time]) => time),
    ['2026-11-20T11:00:00.000Z', '2026-11-19T11:00:00.000Z', '2026-11-18T11:00:00.000Z'],
  );
  t.match(kept(series(24, 1), { last: 23 }).at(-1), [String, ['last 23 (23rd)']]);
  t.end();
});

void t.test('without a rule everything stays; with rules that keep nothing, the last good one', (t) => {
  for (const keep of [null, {}, { last: undefined }])
    t.same(
      kept(series(4, 1), keep).map(([, reasons]) => reasons[0]),
      Array(4).fill('no rule removes anything'),
    );
  t.same(kept(series(4, 1), { last: 0 }), [['2026-11-20T11:00:00.000Z', ['the last good one']]]);
  t.same(kept([], { last: 3 }), []);
  t.end();
});

void t.test('a period without a backup does not count: N periods that have one stay', (t) => {
  const days = ['2026-11-19', '2026-11-12', '2026-10-01', '2026-09-30'].map((day) =>
    backupAt(`${day}T01:00:00.000Z`),
  );
  t.same(
    kept(days, { daily: 3 }).map(([, [reason]]) => reason),
    ['daily 2026-11-19', 'daily 2026-11-12', 'daily 2026-10-01'],
  );
  t.end();
});

void t.test('what is damaged or from the future stays, is named, and takes nobody’s place', (t) => {
  const backups = [
    backupAt('2026-11-18T01:00:00.000Z'),
    backupAt('2026-11-19T01:00:00.000Z'),
    backupAt('2026-11-20T01:00:00.000Z', { good: false }),
    backupAt('2026-12-24T01:00:00.000Z'),
  ];
  t.match(kept(backups, { last: 1 }), [
    ['2026-12-24T01:00:00.000Z', [/future/]],
    ['2026-11-20T01:00:00.000Z', [damagedReason]],
    ['2026-11-19T01:00:00.000Z', ['last 1 (1st)', 'the last good one']],
  ]);
  t.end();
});

void t.test('of two with the same time the one with the later id is the newer', (t) => {
  const time = '2026-11-20T01:00:00.000Z';
  const twins = ['b', 'a', 'c'].map((id) => backupAt(time, { id }));
  const decisions = decideRetention(twins, { keep: { last: 1 }, timeZone: 'UTC', now });
  t.same(
    decisions.map(({ backup, keep }) => [backup.id, keep]),
    [
      ['a', false],
      ['b', false],
      ['c', true],
    ],
  );
  t.end();
});

void t.test('a protected one stays, and its protection changes nothing for the others', (t) => {
  const backups = series(6, 24).map((backup, index) => ({
    ...backup,
    protected: index === 0 || index === 4,
  }));
  t.match(
    kept(backups, { last: 2 }).map(([, reasons]) => reasons),
    [['last 2 (1st)', 'the last good one'], ['last 2 (2nd)', 'protected'], ['protected']],
  );
  t.end();
});

void t.test('days are those of the time zone, also when the clocks change', (t) => {
  const cases = [
    // Zürich: 25 hours on October 25th, 23 on March 29th.
    ['Europe/Zurich', '2026-10-24T22:00:00.000Z', '2026-10-25', '2026-10-25T22:59:59.999Z'],
    ['Europe/Zurich', '2026-03-28T23:00:00.000Z', '2026-03-29', '2026-03-29T21:59:59.999Z'],
    // New York: 25 hours on November 1st, 23 on March 8th.
    ['America/New_York', '2026-11-01T04:00:00.000Z', '2026-11-01', '2026-11-02T04:59:59.999Z'],
    ['America/New_York', '2026-03-08T05:00:00.000Z', '2026-03-08', '2026-03-09T03:59:59.999Z'],
    ['Asia/Kathmandu', '2026-11-19T18:15:00.000Z', '2026-11-20', '2026-11-20T18:14:59.999Z'],
  ] as const;
  for (const [timeZone, first, day, last] of cases) {
    const calendar = new Calendar(timeZone);
    const dayOf = (time: string, shiftMs = 0): string =>
      calendar.periodsOf(new Date(new Date(time).getTime() + shiftMs)).daily;
    t.same([dayOf(first), dayOf(last)], [day, day], `${timeZone} ${day}`);
    t.not(dayOf(first, -1), day);
    t.not(dayOf(last, 1), day);
  }
  const [late, early] = [backupAt('2026-11-19T22:30:00.000Z'), backupAt('2026-11-19T23:30:00.000Z')];
  t.equal(kept([late, early], { daily: 2 }).length, 1, 'one day in UTC');
  t.equal(kept([late, early], { daily: 2 }, { timeZone: 'Europe/Zurich' }).length, 2, 'two in Zürich');
  t.end();
});

void t.test('the hour that comes twice is two hours', (t) => {
  for (const [timeZone, times, names] of [
    [
      'Europe/Zurich',
      ['2026-10-25T00:30:00.000Z', '2026-10-25T01:30:00.000Z'],
      ['2026-10-25T02+02:00', '2026-10-25T02+01:00'],
    ],
    [
      'America/New_York',
      ['2026-11-01T05:30:00.000Z', '2026-11-01T06:30:00.000Z'],
      ['2026-11-01T01-04:00', '2026-11-01T01-05:00'],
    ],
  ] as const) {
    t.same(
      times.map((time) => new Calendar(timeZone).periodsOf(new Date(time)).hourly),
      names,
    );
    t.equal(
      kept(
        times.map((time) => backupAt(time)),
        { hourly: 5 },
        { timeZone },
      ).length,
      2,
    );
  }
  t.end();
});

void t.test('weeks are those of ISO 8601, also around the new year', (t) => {
  const weeks = {
    '2020-12-31': '2020-W53',
    '2021-01-03': '2020-W53',
    '2021-01-04': '2021-W01',
    '2024-12-29': '2024-W52',
    '2024-12-30': '2025-W01',
    '2026-01-01': '2026-W01',
    '2026-12-31': '2026-W53',
    '2027-01-03': '2026-W53',
    '2027-01-04': '2027-W01',
  };
  const calendar = new Calendar('Europe/Zurich');
  for (const [day, week] of Object.entries(weeks))
    t.equal(calendar.periodsOf(new Date(`${day}T12:00:00+01:00`)).weekly, week, day);
  const backups = ['2026-12-30', '2027-01-02', '2027-01-04'].map((day) => backupAt(`${day}T12:00:00.000Z`));
  t.same(
    kept(backups, { weekly: 5 }, { now: new Date('2027-02-01T00:00:00.000Z') }).map(([time]) => time),
    ['2027-01-04T12:00:00.000Z', '2027-01-02T12:00:00.000Z'],
    'Wednesday and Saturday of week 53 are one week, in two years',
  );
  t.throws(() => new Calendar('Europe/Atlantis'), RangeError);
  t.end();
});

void t.test('each backup is decided about once; what stays has a reason, what goes has none', (t) => {
  forAll((backups, rules) => {
    const decisions = decideRetention(backups, rules);
    return (
      new Set(decisions.map(({ backup }) => backup)).size === backups.length &&
      decisions.length === backups.length &&
      decisions.every(({ keep, reasons }) => keep === reasons.length > 0)
    );
  });
  t.end();
});

void t.test('the last good one, what is protected, damaged or from the future never goes', (t) => {
  forAll((backups, rules) => {
    const decisions = decideRetention(backups, rules);
    const past = decisions.filter(({ backup }) => backup.good && new Date(backup.pointInTime) <= now);
    return (
      past.at(-1)?.keep !== false &&
      past.at(-1)?.isLastGood !== false &&
      decisions.filter(({ isLastGood }) => isLastGood).length === Math.min(past.length, 1) &&
      decisions.every(
        ({ backup, keep }) =>
          keep || (backup.good && !backup.protected && new Date(backup.pointInTime) <= now),
      )
    );
  });
  t.end();
});

void t.test('pruning again removes nothing, and after a half-done pruning the same ones stay', (t) => {
  fc.assert(
    fc.property(anyBackups, anyRules, anyZone, fc.nat(30), (backups, keep, timeZone, removed) => {
      const rules = { keep, timeZone, now };
      const decisions = decideRetention(backups, rules);
      const staying = decisions.filter((decision) => decision.keep).map(({ backup }) => backup);
      const left = decisions.filter((decision) => !decision.keep).slice(removed);
      const again = decideRetention([...staying, ...left.map(({ backup }) => backup)], rules);
      return again.every((decision) => decision.keep === staying.includes(decision.backup));
    }),
    settings,
  );
  t.end();
});

void t.test('an older backup that comes in never makes a newer one go', (t) => {
  fc.assert(
    fc.property(anyBackups, anyBackup, anyRules, anyZone, (backups, older, keep, timeZone) => {
      const rules = { keep, timeZone, now };
      const newer = backups.filter(({ pointInTime }) => pointInTime > older.pointInTime);
      const after = decideRetention([...newer, older], rules);
      return decideRetention(newer, rules).every(
        ({ backup, keep: before }) =>
          !before || after.some((decision) => decision.backup === backup && decision.keep),
      );
    }),
    settings,
  );
  t.end();
});

void t.test('no rule keeps more than its number', (t) => {
  forAll((backups, rules) => {
    const reasons = decideRetention(backups, rules).flatMap((decision) => decision.reasons);
    return (['last', ...periodKinds] as const).every(
      (kind) => reasons.filter((reason) => reason.startsWith(`${kind} `)).length <= (rules.keep?.[kind] ?? 0),
    );
  });
  t.end();
});

void t.test('a rule more, or a larger number, never makes anything go', (t) => {
  forAll((backups, rules) => {
    if (rules.keep === null || Object.keys(rules.keep).length === 0) return true;
    const staying = decideRetention(backups, rules).filter(({ keep }) => keep);
    const more = { ...rules, keep: { ...rules.keep, daily: (rules.keep.daily ?? 0) + 1 } };
    const after = decideRetention(backups, more);
    return staying.every(({ backup }) =>
      after.some((decision) => decision.backup === backup && decision.keep),
    );
  });
  t.end();
});
