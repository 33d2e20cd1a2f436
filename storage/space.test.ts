import t from 'tap';
import { fullnessWarning, type StorageSpace } from './space.ts';

const roomy: StorageSpace = { capacityBytes: 1000, freeBytes: 500, storedBytes: null, quotaBytes: null };

void t.test('a storage is told to be nearly full by its quota, or by its file system', (t) => {
  t.equal(fullnessWarning('a', roomy, 85), null);
  t.equal(fullnessWarning('a', { ...roomy, freeBytes: 151 }, 85), null);
  t.match(fullnessWarning('a', { ...roomy, freeBytes: 150 }, 85), /file system of storage a is 85 % full/);
  const quota = { ...roomy, quotaBytes: 200 };
  t.equal(fullnessWarning('a', { ...quota, storedBytes: 169 }, 85), null);
  t.equal(
    fullnessWarning('a', { ...quota, storedBytes: 170 }, 85),
    'storage a holds 85 % of its quota: 170 B of 200 B',
  );
  t.match(fullnessWarning('a', { ...quota, storedBytes: 10 }, 5), /5 %/);
  const unbounded = { capacityBytes: null, freeBytes: null, storedBytes: null, quotaBytes: null };
  t.equal(fullnessWarning('a', unbounded, 1), null);
  t.end();
});
