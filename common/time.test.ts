import * as fc from 'fast-check';
import t from 'tap';
import { formatDuration, formatPointInTime, parsePointInTime } from './time.ts';

void t.test('a point in time reads back as it was written, to the millisecond', (t) => {
  t.equal(formatPointInTime(new Date('2026-11-20T15:15:23.123Z')), '20261120T151523.123Z');
  const time = fc.date({ min: new Date('1970-01-01'), max: new Date('9999-12-31'), noInvalidDate: true });
  fc.assert(
    fc.property(time, (date) => parsePointInTime(formatPointInTime(date))?.getTime() === date.getTime()),
  );
  t.end();
});

void t.test('what is not a point in time is not taken for one', (t) => {
  for (const text of [
    '',
    '20261120T151523Z',
    '20260230T000000.000Z',
    '20261120T251523.123Z',
    'x20261120T151523.123Z',
    '20261120T151523.123Z/..',
  ])
    t.equal(parsePointInTime(text), null, text);
  t.end();
});

void t.test('durations are written for people', (t) => {
  t.same([0, 87.4, 999.6, 2345, 59_960, 245_000, 12_000_000].map(formatDuration), [
    '0 ms',
    '87 ms',
    '1.0 s',
    '2.3 s',
    '1 min 00 s',
    '4 min 05 s',
    '3 h 20 min',
  ]);
  t.end();
});
