import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { createPublicKey, X509Certificate } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import t, { type Test } from 'tap';
import { secureContextOptions } from '../../common/tls/material.ts';
import { enrolHost, FreeAuthority } from '../../test/tls/authority.ts';
import { makeHost, startController } from '../../test/tls/controllerBench.ts';
import { certificateOf } from '../identity/identity.ts';
import { makeCertificateRequest } from '../identity/certificateRequest.ts';
import { hostCredentials, joiningCredentials } from './controllerChannel.ts';
import { EnrolmentClient } from './enrolmentClient.ts';
import { askForRevoked, joinController, renewIdentity } from './joining.ts';
import { askForAuthority, isSameFingerprint } from './offeredAuthority.ts';

void t.test('a host joins with a token, and its key never leaves it', async (t) => {
  const { ca, address, log } = await startController(t, { name: 'c1' });
  const { hostId, store, join } = await makeHost(t);
  const token = ca.issueToken();
  const identity = await join(address, token);
  t.same(identity.controller, { name: 'c1', address });
  t.equal(identity.hostId, hostId);
  t.ok(ca.isGood(certificateOf(identity).serialNumber));
  t.same(await store.current(), identity);
  t.match(log.join(''), /"a host has joined"/);
  t.notMatch(log.join(''), token, 'nor does the token reach the log');
});

void t.test('a token that is refused changes nothing, and says why', async (t) => {
  const { ca, address } = await startController(t);
  const [first, second] = [await makeHost(t), await makeHost(t)];
  await t.rejects(first.join(address, 'unknown'), {
    code: 'TOKEN_REFUSED',
    message: /not known/,
    hint: /new token/,
  });
  t.equal(await first.store.current(), null);
  const token = ca.issueToken();
  await first.join(address, token);
  await t.rejects(second.join(address, token), { code: 'TOKEN_REFUSED', message: /used already/ });
  await t.rejects(second.join(address, ca.issueToken({ validMs: -1 })), {
    code: 'TOKEN_REFUSED',
    message: /expired/,
  });
  t.equal(await second.store.current(), null);
});

void t.test('of two hosts that use one token at the same time, one joins', async (t) => {
  const { ca, address } = await startController(t);
  const hosts = [await makeHost(t), await makeHost(t), await makeHost(t)];
  const token = ca.issueToken();
  const outcomes = await Promise.allSettled(hosts.map(({ join }) => join(address, token)));
  t.same(outcomes.map(({ status }) => status).toSorted(), ['fulfilled', 'rejected', 'rejected']);
  for (const outcome of outcomes)
    if (outcome.status === 'rejected') t.match(outcome.reason, { code: 'TOKEN_REFUSED' });
});

void t.test('a copy of a host cannot join as that host, unless a token is for it', async (t) => {
  const { ca, address } = await startController(t);
  const host = await makeHost(t);
  await host.join(address, ca.issueToken());
  const copy = await makeHost(t, host.hostId);
  await t.rejects(copy.join(address, ca.issueToken()), { code: 'HOST_ALREADY_ENROLLED', hint: /machine-id/ });
  const identity = await copy.join(address, ca.issueToken({ hostId: host.hostId }));
  t.ok(ca.isGood(certificateOf(identity).serialNumber));
});

void t.test('a join whose answer was cut goes on with the same token and the same key', async (t) => {
  const controller = await startController(t);
  const { ca, address, listener } = controller;
  const { store, hostId, join } = await makeHost(t);
  const token = ca.issueToken();
  const proxy = await startProxy(t, listener.port);
  // The token is used up and the certificate made, but the answer does not arrive.
  controller.onLog = (line) => {
    if (line.includes('a host has joined')) proxy.cut();
  };
  await t.rejects(join(proxy.address, token), { code: 'CONTROLLER_UNREACHABLE', retryable: true });
  t.equal(await store.current(), null);
  const { key } = await store.pending('join', hostId);
  const identity = await join(address, token);
  t.equal(identity.key, key);
  t.equal(identity.generation, 1);
});

void t.test('a renewal makes a new key, and the connection that asks need not survive it', async (t) => {
  const { ca, address } = await startController(t);
  const { store, join } = await makeHost(t);
  const identity = await join(address, ca.issueToken());
  const next = await renewIdentity(store, identity, new Date());
  t.equal(next.generation, 2);
  t.notOk(createPublicKey(next.key).equals(createPublicKey(identity.key)));
  t.same(await store.current(), next);
  await t.rejects(renewIdentity(store, identity, new Date()), { code: 'IDENTITY_REPLACED' });
  t.same(await askForRevoked(store, next), []);
});

void t.test('a damaged list of revocations keeps no host from the next one, nor from renewal', async (t) => {
  const { ca, address } = await startController(t);
  const { store, directory, join } = await makeHost(t);
  const identity = await join(address, ca.issueToken());
  await writeFile(`${directory}/revoked.json`, '["A');
  t.same(await askForRevoked(store, identity), []);
  t.equal((await renewIdentity(store, identity, new Date())).generation, 2);
});

void t.test('a certificate that does not count renews nothing', async (t) => {
  const { ca, address, log } = await startController(t);
  const { hostId, store, join } = await makeHost(t);
  const identity = await join(address, ca.issueToken());
  ca.revokeHost(hostId);
  await t.rejects(renewIdentity(store, identity, new Date()), {
    code: 'CONTROLLER_UNREACHABLE',
    hint: /log/,
  });
  t.match(log.join(''), /was revoked/);
  const free = new FreeAuthority();
  const foreign = { ...identity, ...free.sign({ role: 'host', id: hostId }), authorities: ca.certificate };
  await t.rejects(askForRevoked(store, foreign), { code: 'CONTROLLER_UNREACHABLE' });
  t.match(log.join(''), /none of our CAs/);
  t.equal((await store.current())?.generation, 1);
});

void t.test(
  'what a host asks for is for the host of its certificate, and without one for nobody',
  async (t) => {
    const { ca, address } = await startController(t);
    const { hostId, join } = await makeHost(t);
    const identity = await join(address, ca.issueToken());
    const { request } = makeCertificateRequest('somebody-else');
    using client = new EnrolmentClient(address, hostCredentials(identity, new Set()));
    const { certificate } = await client.renew(request);
    t.match(new X509Certificate(certificate).subjectAltName, hostId);
    using nobody = new EnrolmentClient(address, joiningCredentials(ca.certificate));
    await t.rejects(nobody.renew(request), { code: 'ENROLMENT_REFUSED', message: /certificate of a host/ });
    await t.rejects(nobody.listRevoked(), { code: 'ENROLMENT_REFUSED' });
  },
);

void t.test('a message that is too large is refused, and the token is as good as before', async (t) => {
  const { ca, address } = await startController(t);
  const { hostId, join } = await makeHost(t);
  const token = ca.issueToken();
  using client = new EnrolmentClient(address, joiningCredentials(ca.certificate));
  const host = { hostId, name: 'h', agentVersion: '1' };
  await t.rejects(client.enrol(token, new Uint8Array(100 * 1024), host), {
    code: 'ENROLMENT_REFUSED',
    message: /larger than/,
  });
  await join(address, token);
});

void t.test('who answers is known before anything is said to him', async (t) => {
  const ca = new FreeAuthority();
  const now = new Date();
  const cases = [
    [
      'a host',
      ca.sign({ role: 'host', id: 'h' }),
      { code: 'CONTROLLER_UNTRUSTED', message: /no controller/ },
    ],
    [
      'one whose clock is ahead',
      ca.sign({ role: 'controller', id: 'c' }, [2, 4]),
      { code: 'CONTROLLER_UNTRUSTED', message: /valid from .* the clock here says/, hint: /clocks/ },
    ],
    [
      'one that has expired',
      ca.sign({ role: 'controller', id: 'c' }, [-4, -2]),
      { code: 'CONTROLLER_UNTRUSTED', message: /expired on/ },
    ],
    [
      'one that hides its CA',
      { ...ca.sign({ role: 'controller', id: 'c' }), authorities: new FreeAuthority().certificate },
      { code: 'CONTROLLER_UNTRUSTED', message: /does not show the CA/ },
    ],
  ] as const;
  for (const [name, material, error] of cases) {
    const server = createTlsServer({ ...secureContextOptions(material), ALPNProtocols: ['h2'] });
    t.teardown(() => server.close());
    await t.rejects(askForAuthority(await addressOf(server), { now }), error, name);
  }
  const silent = createServer((socket) => socket.end('no TLS here'));
  t.teardown(() => silent.close());
  const plain = await addressOf(silent);
  await t.rejects(askForAuthority(plain, { now }), { code: 'CONTROLLER_UNREACHABLE', retryable: true });
});

void t.test('a host of the same CA that poses as the controller is asked for nothing', async (t) => {
  const { ca, address } = await startController(t);
  const { store, join } = await makeHost(t);
  const identity = await join(address, ca.issueToken());
  const server = createTlsServer({ ...secureContextOptions(enrolHost(ca)), ALPNProtocols: ['h2'] });
  t.teardown(() => server.close());
  const posing = { ...identity, controller: { ...identity.controller, address: await addressOf(server) } };
  const error = { code: 'CONTROLLER_UNREACHABLE', message: /not the certificate of a controller/ };
  await t.rejects(renewIdentity(store, posing, new Date()), error);
  await t.rejects(askForRevoked(store, posing), error);
});

void t.test('another controller in the place of the one that was accepted gets no token', async (t) => {
  const [one, other] = [await startController(t), await startController(t)];
  const { store, hostId } = await makeHost(t);
  const token = other.ca.issueToken();
  const { certificate } = await askForAuthority(one.address, { now: new Date() });
  const request = {
    address: other.address,
    token,
    authority: certificate,
    hostId,
    hostName: 'h',
    now: new Date(),
  };
  await t.rejects(joinController(store, request), { code: 'CONTROLLER_UNREACHABLE' });
  t.notMatch(other.log.join(''), /joined/);
});

void t.test(
  'a host whose clock is wrong is told so, changes nothing, and joins when it is right',
  async (t) => {
    const { ca, address } = await startController(t);
    const { store, hostId, join } = await makeHost(t);
    const token = ca.issueToken();
    const { certificate } = await askForAuthority(address, { now: new Date() });
    const now = new Date(Date.now() - 24 * 3_600_000);
    const request = { address, token, authority: certificate, hostId, hostName: 'h', now };
    await t.rejects(joinController(store, request), {
      code: 'CERTIFICATE_NOT_YET_VALID',
      hint: /timedatectl/,
    });
    t.equal(await store.current(), null);
    t.equal((await join(address, token)).generation, 1);
  },
);

void t.test('fingerprints are the same however they are written', (t) => {
  t.ok(isSameFingerprint('AB:CD:01', 'abcd01'));
  t.ok(isSameFingerprint('SHA256:abcd01', 'AB:CD:01'));
  t.notOk(isSameFingerprint('AB:CD:02', 'abcd01'));
  t.notOk(isSameFingerprint('AB:CD', 'abcd01'));
  t.end();
});

async function addressOf(server: ReturnType<typeof createServer>): Promise<string> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (typeof address !== 'object' || address === null) throw new Error('it does not listen');
  return `127.0.0.1:${address.port}`;
}

interface Proxy {
  readonly address: string;
  /** Ends every connection at once. */
  cut(): void;
}

async function startProxy(t: Test, port: number): Promise<Proxy> {
  const sockets = new Set<Socket>();
  const cut = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  const server = createServer((client) => {
    const upstream = connect(port, '127.0.0.1');
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', cut);
    }
    client.pipe(upstream).pipe(client);
  });
  t.teardown(() => {
    server.close();
    cut();
  });
  return { address: await addressOf(server), cut };
}
