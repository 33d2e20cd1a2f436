import { X509Certificate } from 'node:crypto';
import t from 'tap';
import { FreeAuthority } from '../../test/tls/authority.ts';
import { formatPeerName, peerNameOf } from './peerName.ts';

void t.test('the name that was signed is the name that is read', async (t) => {
  const ca = new FreeAuthority();
  const host = { role: 'host', id: '5d0c9a3e-6f1b-4c62-9a51-0c8a4be7f201' } as const;
  const controller = { role: 'controller', id: 'backup.example' } as const;
  for (const [name, further] of [
    [host, `, DNS:${host.id}`],
    [controller, ''],
    [{ role: 'host', id: 'no_name.of-a-network' }, ''],
  ] as const) {
    const certificate = new X509Certificate(ca.sign(name).certificate);
    t.same(peerNameOf(certificate), name);
    t.equal(certificate.subjectAltName, `URI:${formatPeerName(name)}${further}`);
  }
  t.same(peerNameOf({ subjectAltName: `URI:${formatPeerName(host)}` }), host, 'without a name for others');
});

void t.test('what is not exactly one name of ours is none', async (t) => {
  const ca = new FreeAuthority();
  t.equal(peerNameOf(new X509Certificate(ca.certificate)), null, 'the CA itself');
  for (const id of ['', 'a/b', 'a, URI:stillpoint://controller/c', 'x'.repeat(65), 'a b', 'é']) {
    const { certificate } = ca.sign({ role: 'host', id });
    t.equal(peerNameOf(new X509Certificate(certificate)), null, id);
  }
  const uri = 'URI:stillpoint://host/a';
  for (const subjectAltName of [
    'DNS:a',
    `DNS:a, ${uri}`,
    `${uri}, DNS:b`,
    `${uri}, DNS:a, DNS:a`,
    `${uri}, DNS:a, DNS:b`,
    `${uri}, ${uri}`,
    `${uri}, IP Address:127.0.0.1`,
    'URI:stillpoint://controller/a, DNS:a',
    'URI:stillpoint://host/a_b, DNS:null',
  ])
    t.equal(peerNameOf({ subjectAltName }), null, subjectAltName);
});
