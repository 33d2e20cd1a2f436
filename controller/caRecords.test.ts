import { join } from 'node:path';
import t from 'tap';
import { newId } from '../common/ids.ts';
import { temporaryDirectory } from '../test/tls/authority.ts';
import { CaRecords } from './caRecords.ts';

void t.test('of two processes that have both seen a token unused, one can use it', async (t) => {
  const path = join(await temporaryDirectory(t, 'records'), 'ca.sqlite');
  using one = new CaRecords(path);
  using other = new CaRecords(path);
  const now = new Date();
  const later = new Date(now.getTime() + 60_000);
  one.addToken('hash', null, later);
  const [a, b] = ['a', 'b'].map((requestHash) => {
    const hostId = newId();
    return {
      redemption: { tokenHash: 'hash', requestHash, hostId, now },
      record: {
        role: 'host',
        id: hostId,
        serial: requestHash,
        certificate: `certificate ${requestHash}`,
        requestHash,
        notAfter: later,
      },
    } as const;
  });
  if (a === undefined || b === undefined) throw new Error('unnamed');
  t.same([one.look(a.redemption), other.look(b.redemption)], [null, null]);
  t.equal(one.redeem(a.redemption, a.record), 'certificate a');
  t.throws(() => other.redeem(b.redemption, b.record), { code: 'TOKEN_USED' });
  t.notOk(other.isGood('b'), 'and nothing of the other one is left');
  const again = { ...a.record, serial: 'c', certificate: 'certificate c' };
  t.equal(other.redeem(a.redemption, again), 'certificate a', 'the same request has the same answer');
});
