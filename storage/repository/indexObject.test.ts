import t from 'tap';
import { formatStage } from './fixture.ts';
import { encodeIndex, indexedBytes, indexGroups, type IndexedPack } from './indexObject.ts';
import { indexPacksMax, objectBytesMax, packEntriesMax } from './limits.ts';

/** One of a real pack, as often as wanted. */
function packOf(entries: number): IndexedPack {
  const pack = formatStage().pack([Buffer.from('x')]);
  return { ...pack, entries: Array.from({ length: entries }, () => pack.entries).flat() };
}

void t.test('packs of any number come into indexes that a reader takes, each into one', (t) => {
  for (const [entries, count] of [
    [1, 3 * indexPacksMax + 1],
    [packEntriesMax, 40],
    [3, 200_000],
  ] as const) {
    const pack = packOf(entries);
    const packs = Array.from({ length: count }, () => pack);
    const groups = indexGroups(packs);
    t.equal(groups.flat().length, count);
    t.ok(groups.length > 1);
    for (const group of groups) {
      t.ok(group.length > 0 && group.length <= indexPacksMax, `${group.length} packs`);
      const bytes = group.reduce((sum, one) => sum + indexedBytes(one), 0);
      t.ok(bytes < objectBytesMax, `${bytes} bytes`);
    }
  }
  t.same(indexGroups([]), []);
  t.end();
});

void t.test('an index of more packs than a reader takes is not made', (t) => {
  const pack = packOf(1);
  const packs = Array.from({ length: indexPacksMax + 1 }, () => pack);
  t.throws(() => encodeIndex({ supersedes: [], packs }), RangeError);
  t.end();
});
