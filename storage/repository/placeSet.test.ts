import t from 'tap';
import { PlaceSet } from './placeSet.ts';

void t.test('each place is new once, also of an index that has grown', (t) => {
  const set = new PlaceSet(20);
  for (const number of [0, 7, 8, 19, 20, 100_003]) {
    t.equal(set.has({ number }), false, `${number}`);
    t.equal(set.add({ number }), true, `${number}`);
    t.equal(set.add({ number }), false, `${number}`);
    t.equal(set.has({ number }), true, `${number}`);
  }
  t.equal(set.has({ number: 1 }), false, 'and no other with it');
  t.end();
});
