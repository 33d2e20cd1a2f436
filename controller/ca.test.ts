import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { makeCertificateRequest } from '../agent/identity/certificateRequest.ts';
import { newId } from '../common/ids.ts';
import { certificatesIn, isIssuedByAny } from '../common/tls/material.ts';
import { peerNameOf } from '../common/tls/peerName.ts';
import { openAuthority, temporaryDirectory } from '../test/tls/authority.ts';
import { CertificateAuthority } from './ca.ts';

const hourMs = 3_600_000;

/** What a host sends with a token. */
function request(hostId: string = newId()) {
  return { hostId, certificateRequest: makeCertificateRequest(hostId).request };
}

void t.test('a host gets a certificate of its name for its key, for 90 days', async (t) => {
  const ca = await openAuthority(t, { name: 'c1' });
  const { hostId, certificateRequest } = request();
  const certificate = new X509Certificate(ca.enrol({ token: ca.issueToken(), hostId, certificateRequest }));
  t.same(peerNameOf(certificate), { role: 'host', id: hostId });
  t.ok(isIssuedByAny(certificate, certificatesIn(ca.certificate)));
  t.equal(certificate.ca, false);
  t.ok(certificate.validFromDate.getTime() < Date.now());
  const days = (certificate.validToDate.getTime() - Date.now()) / (24 * hourMs);
  t.ok(days > 89.9 && days <= 90, `${days}`);
  t.ok(ca.isGood(certificate.serialNumber));
  t.same(peerNameOf(new X509Certificate(ca.controllerMaterial().certificate)), {
    role: 'controller',
    id: 'c1',
  });
});

void t.test('a token is good once, until it expires, and for the host that it was made for', async (t) => {
  let now = new Date();
  const ca = await openAuthority(t, { now: () => now });
  const token = ca.issueToken();
  t.throws(() => ca.enrol({ token: 'other', ...request() }), { code: 'TOKEN_UNKNOWN' });
  ca.enrol({ token, ...request() });
  t.throws(() => ca.enrol({ token, ...request() }), { code: 'TOKEN_USED' });
  const hostId = newId();
  const bound = ca.issueToken({ hostId });
  t.throws(() => ca.enrol({ token: bound, ...request() }), { code: 'TOKEN_OF_ANOTHER_HOST' });
  now = new Date(now.getTime() + hourMs + 1);
  t.throws(() => ca.enrol({ token: bound, ...request(hostId) }), { code: 'TOKEN_EXPIRED' });
});

void t.test('the same request for the same token has the same answer, until the token expires', async (t) => {
  let now = new Date();
  const ca = await openAuthority(t, { now: () => now });
  const asked = { token: ca.issueToken(), ...request() };
  const certificate = ca.enrol(asked);
  t.equal(ca.enrol(asked), certificate);
  t.throws(() => ca.enrol({ ...asked, hostId: newId() }), { code: 'TOKEN_USED' }, 'for another host');
  now = new Date(now.getTime() + hourMs + 1);
  t.throws(() => ca.enrol(asked), { code: 'TOKEN_EXPIRED' });
});

void t.test(
  'a host that has joined cannot be replaced by whoever has a token, but by one for this host',
  async (t) => {
    const ca = await openAuthority(t);
    const hostId = newId();
    const first = new X509Certificate(ca.enrol({ token: ca.issueToken(), ...request(hostId) }));
    t.throws(() => ca.enrol({ token: ca.issueToken(), ...request(hostId) }), { code: 'HOST_ENROLLED' });
    t.ok(ca.isGood(first.serialNumber));
    ca.enrol({ token: ca.issueToken({ hostId }), ...request(hostId) });
    t.notOk(ca.isGood(first.serialNumber), 'the earlier one counts no more');
  },
);

void t.test('a request that cannot be used leaves its token as it was', async (t) => {
  const ca = await openAuthority(t);
  const token = ca.issueToken();
  const { hostId, certificateRequest } = request();
  const forged = new Uint8Array(certificateRequest);
  forged[forged.length - 1] = (forged.at(-1) ?? 0) ^ 1;
  const broken: readonly (readonly [string, Uint8Array])[] = [
    ['nothing', new Uint8Array()],
    ['cut', certificateRequest.subarray(0, 40)],
    ['signed with another key', forged],
    ['no request', generateKeyPairSync('ed25519').publicKey.export({ type: 'spki', format: 'der' })],
  ];
  for (const [name, bytes] of broken)
    t.throws(() => ca.enrol({ token, hostId, certificateRequest: bytes }), { code: 'REQUEST_INVALID' }, name);
  for (const wrong of ['', 'web-1', hostId.toUpperCase()])
    t.throws(
      () => ca.enrol({ token, hostId: wrong, certificateRequest }),
      { code: 'REQUEST_INVALID' },
      wrong,
    );
  ca.enrol({ token, hostId, certificateRequest });
});

void t.test(
  'a renewal has a certificate for the new key, and the same answer when it is asked again',
  async (t) => {
    const ca = await openAuthority(t);
    const hostId = newId();
    const first = new X509Certificate(ca.enrol({ token: ca.issueToken(), ...request(hostId) }));
    const { certificateRequest } = request(hostId);
    const renewed = ca.renew(hostId, certificateRequest);
    t.equal(ca.renew(hostId, certificateRequest), renewed);
    t.ok(ca.isGood(first.serialNumber), 'the one before counts until it expires');
    t.ok(ca.isGood(new X509Certificate(renewed).serialNumber));
  },
);

void t.test('what was revoked counts no more, and hosts are told of controllers', async (t) => {
  const ca = await openAuthority(t);
  const hostId = newId();
  const certificate = new X509Certificate(ca.enrol({ token: ca.issueToken(), ...request(hostId) }));
  ca.revokeHost(hostId);
  t.notOk(ca.isGood(certificate.serialNumber));
  t.throws(() => ca.revokeHost(hostId), { code: 'CERTIFICATE_UNKNOWN' });
  const { serialNumber } = new X509Certificate(ca.controllerMaterial().certificate);
  t.same(ca.revokedControllers(), []);
  ca.revoke(serialNumber);
  t.same(ca.revokedControllers(), [serialNumber]);
  t.throws(() => ca.revoke('00'), { code: 'CERTIFICATE_UNKNOWN' });
  t.notOk(ca.isGood('00'), 'nor one that was never given out');
});

void t.test('a CA is the same when it is opened again, and keeps no token', async (t) => {
  const directory = await temporaryDirectory(t, 'ca');
  const asked = request();
  let token = '';
  let certificate = '';
  {
    using ca = await CertificateAuthority.open(directory, { name: 'first' });
    token = ca.issueToken();
    certificate = ca.enrol({ token, ...asked });
  }
  using again = await CertificateAuthority.open(directory, { name: 'second' });
  t.equal(again.name, 'first');
  t.equal(again.enrol({ token, ...asked }), certificate);
  t.equal((await stat(join(directory, 'ca/key.pem'))).mode & 0o777, 0o600);
  for (const name of await readdir(directory, { recursive: true })) {
    const path = join(directory, name);
    if ((await stat(path)).isFile()) t.notMatch(await readFile(path, 'latin1'), token, name);
  }
});

void t.test('two that open a CA at the same time have the same one', async (t) => {
  const directory = await temporaryDirectory(t, 'ca');
  const [a, b] = await Promise.all([0, 1].map(() => CertificateAuthority.open(directory)));
  t.equal(a?.certificate, b?.certificate);
  for (const ca of [a, b]) ca?.[Symbol.dispose]();
});
