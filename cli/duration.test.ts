import t from 'tap';
import { parseDuration } from './duration.ts';

void t.test('a duration is a number and its unit', (t) => {
  const cases = [
    ['90s', 90_000],
    ['30m', 1_800_000],
    ['2h', 7_200_000],
    ['30d', 2_592_000_000],
  ] as const;
  for (const [text, durationMs] of cases) t.equal(parseDuration(text, '--budget', ''), durationMs);
  for (const text of ['', '2', 'h', '-1h', '0h', '1.5h', '2 h', '2w', '9999999d', '1h30m'])
    t.throws(() => parseDuration(text, '--budget', ''), { code: 'USAGE' }, text);
  t.end();
});
