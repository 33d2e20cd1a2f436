import t from 'tap';
import { isUuid, newId } from './ids.ts';

void t.test('ids sort in the order of their making', (t) => {
  const ids = Array.from({ length: 100 }, () => newId());
  t.same(ids.toSorted(), ids);
  t.ok(ids.every(isUuid));
  t.notOk(isUuid('../../etc'));
  t.end();
});
