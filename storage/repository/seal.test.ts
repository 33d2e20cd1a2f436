import * as fc from 'fast-check';
import t from 'tap';
import { deriveKey, seal, sealBytes, unseal } from './seal.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed}`);
const key = Buffer.alloc(32, 7);
const bound = Buffer.from('where it belongs');

void t.test('what was sealed is read with the same key and the same bound data', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.uint8Array({ maxLength: 40 }), (text, data) => {
      const sealed = seal(key, data, text);
      return sealed.length === text.length + sealBytes && unseal(key, data, sealed)?.equals(text) === true;
    }),
    { seed },
  );
  t.end();
});

void t.test('every flipped bit, another key, other bound data and every shorter text are refused', (t) => {
  const sealed = seal(key, bound, Buffer.from('a secret'));
  for (let bit = 0; bit < sealed.length * 8; bit++) {
    const changed = Buffer.from(sealed);
    changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    t.equal(unseal(key, bound, changed), null, `bit ${bit}`);
  }
  for (let length = 0; length < sealed.length; length++)
    t.equal(unseal(key, bound, sealed.subarray(0, length)), null);
  t.equal(unseal(deriveKey(key, 'other'), bound, sealed), null);
  t.equal(unseal(key, Buffer.from('elsewhere'), sealed), null);
  t.end();
});

void t.test('without any random number, two different texts never share a key', (t) => {
  const one = seal(key, bound, Buffer.from('text one'));
  const two = seal(key, bound, Buffer.from('text two'));
  const same = seal(key, bound, Buffer.from('text one'));
  t.ok(one.equals(same), 'the same text shows as the same text');
  t.notOk(one.subarray(0, 32).equals(two.subarray(0, 32)), 'what the key is made of');
  const xor = Buffer.from(one.subarray(32, 40).map((byte, index) => byte ^ (two[32 + index] ?? 0)));
  t.notOk(xor.equals(Buffer.from('\0\0\0\0\0\x1b\x19\x0a', 'latin1')), 'and no key stream');
  t.end();
});
