import t from 'tap';
import { formatBytes, parseBytes } from './units.ts';

void t.test('sizes are written for people, in binary units', (t) => {
  t.same([0, 512, 1023, 1024, 1536, 1024 ** 2 - 1, 40 * 1024 ** 3, 104.3 * 1024 ** 2].map(formatBytes), [
    '0 B',
    '512 B',
    '1023 B',
    '1 KiB',
    '1.5 KiB',
    '1 MiB',
    '40 GiB',
    '104 MiB',
  ]);
  t.end();
});

void t.test('sizes are read as people write them, binary and decimal units told apart', (t) => {
  t.same(['1 B', '512KiB', '1.5 GiB', '2TB', '500 GB', '3 kB'].map(parseBytes), [
    1,
    512 * 1024,
    1.5 * 1024 ** 3,
    2e12,
    5e11,
    3000,
  ]);
  for (const text of [
    '',
    '12',
    '5G',
    '5 gib',
    '-1 GiB',
    '0 B',
    '0.1 B',
    '1e3 MiB',
    '9 PiB x',
    '99999999 PiB',
  ])
    t.throws(() => parseBytes(text), RangeError, text);
  t.end();
});
