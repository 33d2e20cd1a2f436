import t from 'tap';
import { KeyRing } from './keyRing.ts';
import {
  formatKeyFile,
  formatSlot,
  newKeyFileKey,
  openSlot,
  parseKeyFile,
  parseSlot,
  type Secret,
  sealSlot,
} from './keySlot.ts';
import { formatRecoveryKey, newRecoveryKey, parseRecoveryKey } from './recoveryKey.ts';

const options = {
  repositoryId: '0198c0de-0000-7000-8000-000000000001',
  label: 'test',
  createdAt: '2026-11-21T10:00:00.000Z',
  cost: { logN: 14, r: 1, p: 1 },
};
const ring = KeyRing.generate();
const sharedKey = newKeyFileKey();
const secrets: readonly Secret[] = [
  { kind: 'passphrase', passphrase: 'correct horse' },
  { kind: 'passphrase', passphrase: 'wrong horse' },
  { kind: 'keyFile', key: sharedKey },
  { kind: 'keyFile', key: newKeyFileKey() },
  // The same bytes as another kind are another secret.
  { kind: 'recovery', key: sharedKey },
];

void t.test('each kind of secret opens its own slot, and no other secret does', async (t) => {
  for (const made of secrets) {
    const slot = parseSlot(formatSlot(await sealSlot(ring, made, options)), 'the slot');
    for (const tried of secrets) {
      const opened = await openSlot(slot, tried);
      t.equal(
        opened?.encode().equals(ring.encode()) ?? false,
        tried === made,
        `${made.kind} by ${tried.kind}`,
      );
    }
  }
});

void t.test('a slot opens only as it was made: another repository, id, salt or cost refuse', async (t) => {
  const [secret] = secrets;
  if (secret === undefined) throw new Error('no secret');
  const slot = await sealSlot(ring, secret, options);
  t.not(await openSlot(slot, secret), null);
  for (const change of [
    { repositoryId: '0198c0de-0000-7000-8000-000000000002' },
    { slotId: '0000000000000000' },
    { salt: '00'.repeat(32) },
    { scrypt: { logN: 15, r: 1, p: 1 } },
    { sealed: Buffer.alloc(100).toString('base64') },
  ])
    t.equal(await openSlot({ ...slot, ...change }, secret), null, Object.keys(change).join());
});

void t.test('a slot to write only is no other slot, whatever is made of its line', async (t) => {
  const writer = ring.writer();
  for (const secret of secrets) {
    const slot = parseSlot(formatSlot(await sealSlot(writer, secret, options)), 'the slot');
    t.equal(slot.access, 'write');
    const opened = await openSlot(slot, secret);
    t.ok(opened?.isWriter);
    t.ok(opened?.encode().equals(writer.encode()));
    const { access: _access, ...reading } = slot;
    t.equal(await openSlot(reading, secret), null);
    const other = await sealSlot(ring, secret, options);
    t.equal(await openSlot({ ...other, access: 'write' }, secret), null);
    const text = Buffer.from(JSON.stringify({ ...slot, access: 'more' }));
    t.throws(() => parseSlot(text, 'the slot'), { code: 'REPOSITORY_DAMAGED' });
  }
});

void t.test('a passphrase is the same in both forms of its accents', async (t) => {
  const slot = await sealSlot(ring, { kind: 'passphrase', passphrase: 'caf\u00e9' }, options);
  t.not(await openSlot(slot, { kind: 'passphrase', passphrase: 'cafe\u0301' }), null);
});

void t.test('a hostile slot cannot make us compute or allocate without end', async (t) => {
  const [secret] = secrets;
  if (secret === undefined) throw new Error('no secret');
  const slot = await sealSlot(ring, secret, options);
  for (const scrypt of [
    { logN: 21, r: 8, p: 1 },
    { logN: 13, r: 8, p: 1 },
    { logN: 17, r: 9, p: 1 },
    { logN: 17, r: 8, p: 5 },
    { logN: 17.5, r: 8, p: 1 },
    undefined,
  ]) {
    const text = Buffer.from(JSON.stringify({ ...slot, scrypt }));
    t.throws(() => parseSlot(text, 'the slot'), { code: 'REPOSITORY_DAMAGED' });
  }
  t.throws(() => parseSlot(Buffer.alloc(70_000, 32), 'the slot'), { code: 'REPOSITORY_DAMAGED' });
  const later = Buffer.from(JSON.stringify({ ...slot, formatVersion: 2 }));
  t.throws(() => parseSlot(later, 'the slot'), { code: 'REPOSITORY_TOO_NEW' });
});

void t.test('a rotation keeps what the older generation reads, and the ids of chunks', (t) => {
  const rotated = KeyRing.decode(ring.rotated().encode());
  t.equal(rotated.newestGeneration, 2);
  t.ok(rotated.dedupKey.equals(ring.dedupKey));
  t.ok(rotated.key(1, 'data').equals(ring.key(1, 'data')));
  t.notOk(rotated.key(2, 'data').equals(ring.key(1, 'data')));
  t.throws(() => ring.key(2, 'data'), { code: 'REPOSITORY_TOO_NEW' });
  t.end();
});

void t.test('a recovery key is read however it is typed, and no typing error passes', (t) => {
  const key = newRecoveryKey();
  const printed = formatRecoveryKey(key);
  t.match(printed, /^([0-9A-HJKMNP-TV-Z]{4}-){13}[0-9A-HJKMNP-TV-Z]{4}$/);
  t.ok(parseRecoveryKey(printed).equals(key));
  t.ok(parseRecoveryKey(printed.toLowerCase().replaceAll('-', ' ').replaceAll('0', 'o')).equals(key));
  const plain = printed.replaceAll('-', '');
  let passed = 0;
  for (let place = 0; place < plain.length; place++) {
    const wrong = plain.slice(0, place) + (plain[place] === '7' ? '8' : '7') + plain.slice(place + 1);
    try {
      parseRecoveryKey(wrong);
      passed++;
    } catch (error) {
      t.match(error, { code: 'KEY_WRONG' });
    }
  }
  // One in a million passes a check of 20 bits.
  t.equal(passed, 0);
  for (const text of ['', plain.slice(1), `${plain}0`, 'é'.repeat(56)])
    t.throws(() => parseRecoveryKey(text), { code: 'KEY_WRONG' });
  t.end();
});

void t.test('a key file is 64 digits; what else it holds is never in the error', (t) => {
  t.ok(parseKeyFile(formatKeyFile(sharedKey)).equals(sharedKey));
  t.ok(parseKeyFile(formatKeyFile(sharedKey).toUpperCase().trim()).equals(sharedKey));
  for (const text of ['', 'secretsecret', `${'0'.repeat(63)}x`, '0'.repeat(65)]) {
    try {
      parseKeyFile(text);
      t.fail(text);
    } catch (error) {
      t.match(error, { code: 'KEY_WRONG' });
      if (text !== '') t.notMatch(String(error), text);
    }
  }
  t.end();
});
