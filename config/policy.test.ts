import { assert, constantFrom, property, string } from 'fast-check';
import t from 'tap';
import { matchesName } from './policy.ts';

void t.test('a pattern means what it means as a regular expression', async (t) => {
  const text = string({ unit: constantFrom('a', 'b', '.', '*', '?', '😀'), maxLength: 8 });
  assert(
    property(text, text, (pattern, name) => {
      const escaped = pattern.replaceAll('.', String.raw`\.`).replaceAll('*', '.*').replaceAll('?', '.');
      const expected = new RegExp(`^${escaped}$`, 'su').test(name);
      return matchesName(pattern, name) === expected;
    }),
    { numRuns: 5000 },
  );
  t.pass('for every pattern that was tried');
});

void t.test('a pattern of many stars is decided at once', async (t) => {
  // A regular expression tries each way to divide the name: longer than the age of the universe.
  t.notOk(matchesName('*a'.repeat(40), `${'a'.repeat(39)}b`.repeat(50).slice(0, 200) + 'c'));
  t.ok(matchesName(`${'*a'.repeat(40)}*`, 'a'.repeat(200)));
});
