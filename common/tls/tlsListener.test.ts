import { once } from 'node:events';
import { connect as connectPlain } from 'node:net';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import t, { type Test } from 'tap';
import { FreeAuthority } from '../../test/tls/authority.ts';
import { certificatesIn, type TlsMaterial } from './material.ts';
import { peerNameOf } from './peerName.ts';
import { TlsListener } from './tlsListener.ts';

const controller = { role: 'controller', id: 'c1' } as const;
const host = { role: 'host', id: 'h1' } as const;

interface Bench {
  readonly listener: TlsListener;
  readonly port: number;
  readonly refusals: string[];
  readonly accepted: TLSSocket[];
  /** Serial numbers that are not accepted. */
  readonly revoked: Set<string>;
}

/** A listener that lets controllers in and says hello to them. */
async function listen(t: Test, material: TlsMaterial): Promise<Bench> {
  const [refusals, accepted, revoked] = [[] as string[], [] as TLSSocket[], new Set<string>()];
  const listener = new TlsListener({
    material,
    judge: (certificate) => {
      if (certificate === null) return 'it shows no certificate';
      if (revoked.has(certificate.serialNumber)) return 'revoked';
      return peerNameOf(certificate)?.role === 'controller' ? null : 'it is no controller';
    },
    accept: (socket) => {
      accepted.push(socket);
      socket.write('hello');
    },
    maxConnections: 4,
    refused: (_, reason) => refusals.push(reason),
  });
  const port = await listener.listen({ host: '127.0.0.1', port: 0 });
  t.teardown(() => listener.close());
  return { listener, port, refusals, accepted, revoked };
}

function client(
  t: Test,
  { port }: Bench,
  material: Partial<TlsMaterial>,
  options: ConnectionOptions = {},
): TLSSocket {
  const { key, certificate, authorities } = material;
  const socket = connect({
    host: '127.0.0.1',
    port,
    ...(key === undefined ? {} : { key, cert: certificate }),
    ca: authorities,
    ALPNProtocols: ['h2'],
    checkServerIdentity: () => undefined,
    ...options,
  });
  socket.on('error', () => undefined); // what a refused client sees differs; the listener says why
  t.teardown(() => socket.destroy());
  return socket;
}

/** What the listener has said, or why it has not: the connection has ended without a word. */
async function answerOf(socket: TLSSocket): Promise<string> {
  return new Promise((resolve) => {
    socket.once('data', (data: Buffer) => resolve(data.toString()));
    socket.once('close', () => resolve('closed'));
  });
}

void t.test('a controller with a certificate of our CA is let in, by TLS 1.3', async (t) => {
  const ca = new FreeAuthority();
  const bench = await listen(t, ca.sign(host));
  const socket = client(t, bench, ca.sign(controller));
  t.equal(await answerOf(socket), 'hello');
  t.equal(socket.getProtocol(), 'TLSv1.3');
  t.same(bench.refusals, []);
});

void t.test('everybody else is refused, and the log says why', async (t) => {
  const ca = new FreeAuthority();
  const other = new FreeAuthority();
  const foreign = { ...other.sign(controller), authorities: ca.certificate };
  const bench = await listen(t, ca.sign(host));
  const cases: readonly (readonly [string, Partial<TlsMaterial>, RegExp])[] = [
    ['of another CA', foreign, /from none of our CAs/],
    ['expired', ca.sign(controller, [-3, -1]), /expired on .* the clock here says/],
    ['not yet valid', ca.sign(controller, [1, 3]), /valid from .* the clock here says/],
    ['a host', ca.sign(host), /no controller/],
    ['without a certificate', { authorities: ca.certificate }, /shows no certificate/],
  ];
  for (const [name, material, reason] of cases) {
    bench.refusals.length = 0;
    t.equal(await answerOf(client(t, bench, material)), 'closed', name);
    t.match(bench.refusals, [reason], name);
  }
  t.equal(bench.accepted.length, 0);
});

void t.test('a certificate that was revoked is refused, and an open connection with it ends', async (t) => {
  const ca = new FreeAuthority();
  const bench = await listen(t, ca.sign(host));
  const [stolen, good] = [ca.sign(controller), ca.sign(controller)];
  const [first, second] = [client(t, bench, stolen), client(t, bench, good)];
  t.same([await answerOf(first), await answerOf(second)], ['hello', 'hello']);
  const [certificate] = certificatesIn(stolen.certificate);
  bench.revoked.add(certificate?.serialNumber ?? '');
  const ended = once(first, 'close');
  bench.listener.review();
  await ended;
  t.equal(second.destroyed, false, 'the other one stays');
  t.equal(await answerOf(client(t, bench, stolen)), 'closed');
  t.same(bench.refusals, ['revoked', 'revoked']);
});

void t.test(
  'TLS 1.2, no HTTP/2 and no TLS at all are refused, also after the material was replaced',
  async (t) => {
    const ca = new FreeAuthority();
    const bench = await listen(t, ca.sign(host));
    for (const round of ['first', 'replaced']) {
      const material = ca.sign(controller);
      const older = client(t, bench, material, { maxVersion: 'TLSv1.2' });
      t.equal(await answerOf(older), 'closed', round);
      const others = client(t, bench, material, { ALPNProtocols: [] });
      t.equal(await answerOf(others), 'closed', round);
      const plain = connectPlain(bench.port, '127.0.0.1');
      plain.on('error', () => undefined);
      const ended = once(plain, 'close');
      plain.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
      await ended;
      t.equal(bench.accepted.length, 0, round);
      t.equal(bench.refusals.splice(0).length, 3, round);
      bench.listener.replaceMaterial(ca.sign(host));
    }
  },
);

void t.test(
  'material is replaced without an end of what is open, and new connections see the new one',
  async (t) => {
    const ca = new FreeAuthority();
    const [before, after] = [ca.sign(host), ca.sign(host)];
    const bench = await listen(t, before);
    const old = client(t, bench, ca.sign(controller));
    t.equal(await answerOf(old), 'hello');
    bench.listener.replaceMaterial(after);
    const fresh = client(t, bench, ca.sign(controller));
    t.equal(await answerOf(fresh), 'hello');
    const [expected] = certificatesIn(after.certificate);
    t.equal(fresh.getPeerX509Certificate()?.serialNumber, expected?.serialNumber);
    const heard = answerOf(old);
    bench.accepted[0]?.write('still here');
    t.equal(await heard, 'still here');
  },
);

void t.test('a session is not resumed: each connection has its certificate looked at', async (t) => {
  const ca = new FreeAuthority();
  const bench = await listen(t, ca.sign(host));
  const material = ca.sign(controller);
  const first = client(t, bench, material);
  const sessions: Buffer[] = [];
  first.on('session', (session) => sessions.push(session));
  t.equal(await answerOf(first), 'hello');
  const closed = once(first, 'close');
  first.end();
  await closed;
  const second = client(t, bench, material, sessions[0] === undefined ? {} : { session: sessions[0] });
  t.equal(await answerOf(second), 'hello');
  t.equal(second.isSessionReused(), false);
});

void t.test('more connections than there may be are refused', async (t) => {
  const ca = new FreeAuthority();
  const bench = await listen(t, ca.sign(host));
  const answers = Array.from({ length: 4 }, () => answerOf(client(t, bench, ca.sign(controller))));
  t.same(await Promise.all(answers), ['hello', 'hello', 'hello', 'hello']);
  t.equal(await answerOf(client(t, bench, ca.sign(controller))), 'closed');
  t.same(bench.refusals, ['there are 4 connections']);
});

void t.test('an end of listening is not held up by who has connected and says nothing', async (t) => {
  const ca = new FreeAuthority();
  const bench = await listen(t, ca.sign(host));
  const silent = connectPlain(bench.port, '127.0.0.1');
  await once(silent, 'connect');
  t.equal(await answerOf(client(t, bench, ca.sign(controller))), 'hello');
  const ended = once(silent, 'close');
  await bench.listener.close();
  await ended;
});
