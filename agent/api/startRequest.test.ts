import t from 'tap';
import { startRequest } from '../../test/sim/servedSite.ts';
import { BackupMode } from '../../proto/generated/stillpoint/v1/agent.ts';
import { fingerprintOf, partsOf, startRequestOf } from './startRequest.ts';

const fingerprint = (fields: Parameters<typeof startRequest>[0]): string =>
  fingerprintOf('backup', partsOf(startRequestOf(startRequest(fields))));

void t.test('what is left out is up to the policy', async (t) => {
  t.same(startRequestOf(startRequest()), {
    key: 'key-1',
    machines: ['m'],
    wishes: { mode: undefined, storages: undefined, labels: {}, reread: false },
  });
});

void t.test('a request that cannot be meant is refused before anything is written down', async (t) => {
  const wrong: readonly Parameters<typeof startRequest>[0][] = [
    { idempotencyKey: '' },
    { idempotencyKey: 'with a space' },
    { idempotencyKey: 'x'.repeat(129) },
    { machines: [] },
    { machines: ['m', 'm'] },
    { machines: [''] },
    { machines: ['a\u0000b'] },
    { machines: Array.from({ length: 1001 }, (_, index) => `m${index}`) },
    { storages: ['near', 'near'] },
    { labels: { '': 'x' } },
    { labels: { a: 'x'.repeat(257) } },
    { labels: Object.fromEntries(Array.from({ length: 65 }, (_, index) => [`k${index}`, ''])) },
    { mode: BackupMode.UNRECOGNIZED },
  ];
  for (const fields of wrong)
    t.throws(() => startRequestOf(startRequest(fields)), { code: 'REQUEST_INVALID' }, JSON.stringify(fields));
});

void t.test('requests are the same that ask for the same, in whatever order labels come', async (t) => {
  const base = fingerprint({ labels: { a: '1', b: '2' } });
  t.equal(fingerprint({ labels: { b: '2', a: '1' } }), base);
  t.equal(
    fingerprint({ labels: { a: '1', b: '2' }, idempotencyKey: 'other' }),
    base,
    'the key is not part of it',
  );
  const others = [
    { labels: { a: '1' } },
    { labels: { a: '1', b: '2' }, machines: ['n'] },
    { labels: { a: '1', b: '2' }, mode: BackupMode.BACKUP_MODE_LIVE },
    { labels: { a: '1', b: '2' }, storages: ['near'] },
    { labels: { a: '1', b: '2' }, reread: true },
  ];
  for (const fields of others) t.not(fingerprint(fields), base, JSON.stringify(fields));
});
