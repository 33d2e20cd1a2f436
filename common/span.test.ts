import t from 'tap';
import { intervalMs, intervalPattern, momentBefore, spanPattern } from './span.ts';

void t.test('a span leads back to the moment that people mean', (t) => {
  const cases: readonly (readonly [string, string, string])[] = [
    ['2026-11-20T12:00:00.000Z', '36h', '2026-11-19T00:00:00.000Z'],
    ['2026-11-20T12:00:00.000Z', '14d', '2026-11-06T12:00:00.000Z'],
    ['2026-11-20T12:00:00.000Z', '8w', '2026-09-25T12:00:00.000Z'],
    ['2026-11-20T12:00:00.000Z', '6mo', '2026-05-20T12:00:00.000Z'],
    ['2026-03-31T12:00:00.000Z', '1mo', '2026-02-28T12:00:00.000Z'],
    ['2026-01-31T12:00:00.000Z', '2mo', '2025-11-30T12:00:00.000Z'],
    ['2024-02-29T12:00:00.000Z', '1y', '2023-02-28T12:00:00.000Z'],
    ['2024-02-29T12:00:00.000Z', '4y', '2020-02-29T12:00:00.000Z'],
    // The clocks change in between: a day has 24 hours all the same.
    ['2026-10-26T01:00:00.000Z', '1d', '2026-10-25T01:00:00.000Z'],
  ];
  for (const [from, span, before] of cases)
    t.equal(momentBefore(new Date(from), span).toISOString(), before, span);
  t.ok(momentBefore(new Date('2026-11-20T12:00:00.000Z'), '99999y').getTime() < 0, 'no span is too long');
  t.end();
});

void t.test('what is not a span is refused', (t) => {
  for (const text of ['', '14', 'd', '0d', '-1d', '1.5d', '14 d', '14D', '1m', '100000d', '14d6h', '1e3d']) {
    t.notOk(spanPattern.test(text), text);
    t.throws(() => momentBefore(new Date(), text), RangeError, text);
  }
  t.end();
});

void t.test('an interval has the length that it says, and what is none is refused', (t) => {
  for (const [text, minutes] of [
    ['1min', 1],
    ['90min', 90],
    ['4h', 240],
    ['1d', 1440],
    ['2w', 20_160],
  ] as const)
    t.equal(intervalMs(text), minutes * 60_000, text);
  for (const text of [
    '',
    '4',
    'h',
    '0h',
    '-1h',
    '1.5h',
    '4 h',
    '4H',
    '1m',
    '1mo',
    '1y',
    '100000h',
    '1h30min',
  ]) {
    t.notOk(intervalPattern.test(text), text);
    t.throws(() => intervalMs(text), RangeError, text);
  }
  t.end();
});
