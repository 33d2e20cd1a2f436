import t from 'tap';
import { formatBytes } from './units.ts';

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
