import { once } from 'node:events';
import { join } from 'node:path';
import { X509Certificate } from 'node:crypto';
import { connect, createServer, type TLSSocket } from 'node:tls';
import t, { type Test } from 'tap';
import { createLogger } from '../../common/log.ts';
import { secureContextOptions } from '../../common/tls/material.ts';
import { newId } from '../../common/ids.ts';
import { openStub, type Stub } from '../../controller/stub.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { alert } from '../../test/sim/reports.ts';
import { enrolHost, FreeAuthority, openAuthority, temporaryDirectory } from '../../test/tls/authority.ts';
import type { Identity } from '../identity/identity.ts';
import { IdentityStore } from '../identity/identityStore.ts';
import { channelOf, joinedChannelOf } from './channel.ts';
import { OutboxKeeper } from './outboxKeeper.ts';
import { type ControllerChannel, Sender } from './sender.ts';

interface Receiver {
  readonly stub: Stub;
  readonly hosts: string[];
  readonly identity: Identity;
  readonly controllerSerial: string;
}

/** A receiver for hosts with certificates, and the identity of one. */
async function receiverFor(test: Test): Promise<Receiver> {
  const ca = await openAuthority(test);
  const hosts: string[] = [];
  const stub = await openStub({
    directory: await temporaryDirectory(test, 'receiver'),
    listen: '127.0.0.1:0',
    ca,
    onReport: ({ host }) => hosts.push(host),
  });
  test.teardown(() => stub[Symbol.asyncDispose]());
  const controllerSerial = await serialOf(stub.address);
  return { stub, hosts, identity: enrolHost(ca), controllerSerial };
}

/** Of the certificate that a controller shows. */
async function serialOf(address: string): Promise<string> {
  const [host, port] = address.split(':');
  const socket = connect({ host, port: Number(port), rejectUnauthorized: false, ALPNProtocols: ['h2'] });
  await once(socket, 'secureConnect');
  const serial = socket.getPeerX509Certificate()?.serialNumber ?? '';
  socket.destroy();
  return serial;
}

/** A store that has an identity that no host could have got. */
function identitiesOf(identity: Identity, revoked: readonly string[] = []) {
  return {
    current: () => Promise.resolve({ ...identity, generation: 1 }),
    revoked: () => Promise.resolve(new Set(revoked)),
  };
}

/** Notes one report and sends it, as a host that says that it is `id`. */
async function sending(test: Test, channel: ControllerChannel, id: string) {
  const directory = await temporaryDirectory(test, 'outbox');
  const said: string[] = [];
  let sender: Sender | undefined;
  const log = createLogger({ destination: { write: (line: string) => void said.push(line) } });
  const keeper = new OutboxKeeper(
    join(directory, 'outbox.sqlite'),
    { maxBytes: 1024 * 1024 },
    { log, onNoted: () => sender?.wake() },
  );
  const stop = new AbortController();
  sender = new Sender({ keeper, channel, host: { id, name: 'h', version: '0' }, log });
  keeper.note({ reports: [alert('a', 'x')] });
  const work = sender.run(stop.signal);
  const end = async (): Promise<void> => {
    stop.abort();
    await work;
    keeper[Symbol.dispose]();
  };
  test.teardown(end);
  return { said, sender, keeper, end };
}

/** The same for a host that has joined. */
async function reporting(
  test: Test,
  { stub, identity }: Pick<Receiver, 'stub' | 'identity'>,
  id: string,
  prepare: (store: IdentityStore) => Promise<void> = () => Promise.resolve(),
) {
  const store = new IdentityStore(join(await temporaryDirectory(test, 'host'), 'identity'));
  await store.adopt(identity, 0);
  await prepare(store);
  return { store, ...(await sending(test, joinedChannelOf(stub.address, store), id)) };
}

/** As `reporting`. @returns what the log says */
async function report(...about: Parameters<typeof reporting>): Promise<readonly string[]> {
  return (await reporting(...about)).said;
}

void t.test('a host that has joined reports with its certificate', async (t) => {
  const receiver = await receiverFor(t);
  await report(t, receiver, receiver.identity.hostId);
  await eventually(() => receiver.hosts.length > 0);
  t.same(receiver.hosts, [receiver.identity.hostId]);
});

void t.test('a host reports of itself only', async (t) => {
  const receiver = await receiverFor(t);
  const other = newId();
  const said = await report(t, receiver, other);
  const line = await eventually(() => said.find((text) => text.includes('CONTROLLER_REFUSED')));
  t.match(line, `these are reports of ${other}, and the certificate is of ${receiver.identity.hostId}`);
  t.same(receiver.hosts, []);
});

void t.test('a host sends nothing to a controller whose certificate was revoked', async (t) => {
  const receiver = await receiverFor(t);
  const said = await report(t, receiver, receiver.identity.hostId, async (store) => {
    await store.keepRevoked([receiver.controllerSerial]);
  });
  await eventually(() => said.some((line) => line.includes('reports wait in the outbox')));
  t.same(receiver.hosts, []);
});

void t.test('an open stream ends when the certificate of its controller is revoked', async (t) => {
  const receiver = await receiverFor(t);
  const { store, sender, keeper, said } = await reporting(t, receiver, receiver.identity.hostId);
  await eventually(() => receiver.hosts.length === 1);
  await store.keepRevoked(['AA']);
  await sender.review();
  keeper.note({ reports: [alert('b', 'x')] });
  await eventually(() => receiver.hosts.length === 2);
  t.notOk(
    said.some((line) => line.includes('reports wait')),
    'that of another one touches nobody',
  );
  await store.keepRevoked(['AA', receiver.controllerSerial]);
  await sender.review();
  await eventually(() => said.some((line) => line.includes(`${receiver.controllerSerial} was revoked`)));
  keeper.note({ reports: [alert('c', 'x')] });
  await eventually(() => said.some((line) => line.includes('No connection established')));
  t.equal(receiver.hosts.length, 2, 'nothing more was sent');
  t.equal(keeper.outbox.backlog.reports, 1);
});

void t.test('who is no host of the controller, or not any more, reports nothing to it', async (t) => {
  let now = new Date();
  const ca = await openAuthority(t, { now: () => now });
  const hosts: string[] = [];
  const refusals: string[] = [];
  const stub = await openStub({
    directory: await temporaryDirectory(t, 'receiver'),
    listen: '127.0.0.1:0',
    ca,
    onReport: ({ host }) => hosts.push(host),
    log: createLogger({ level: 'warn', destination: { write: (line: string) => void refusals.push(line) } }),
  });
  t.teardown(() => stub[Symbol.asyncDispose]());
  const good = enrolHost(ca);
  now = new Date(Date.now() - 200 * 24 * 3_600_000);
  const expired = enrolHost(ca);
  now = new Date(Date.now() + 24 * 3_600_000);
  const early = enrolHost(ca);
  now = new Date();
  const revoked = enrolHost(ca);
  ca.revokeHost(revoked.hostId);
  const strange = { ...enrolHost(await openAuthority(t)), authorities: ca.certificate };
  const cases = [
    ['expired', expired, /expired on/],
    ['not valid yet', early, /valid from/],
    ['revoked', revoked, /was revoked/],
    ['of another CA', strange, /none of our CAs/],
    ['of the controller itself', { ...good, ...ca.controllerMaterial() }, /it is no host/],
  ] as const;
  for (const [name, identity, reason] of cases) {
    refusals.length = 0;
    const identities = identitiesOf(identity);
    const { keeper } = await sending(t, joinedChannelOf(stub.address, identities), identity.hostId);
    await eventually(() => refusals.some((line) => reason.test(line)));
    t.equal(keeper.outbox.backlog.reports, 1, name);
  }
  t.same(hosts, []);
  await sending(t, joinedChannelOf(stub.address, identitiesOf(good)), good.hostId);
  await eventually(() => hosts.length === 1);
});

void t.test('a host reports to nobody who does not prove to be its controller', async (t) => {
  const ca = new FreeAuthority();
  const controller = { role: 'controller', id: 'c' } as const;
  const hostId = newId();
  const identity = {
    ...ca.sign({ role: 'host', id: hostId }),
    hostId,
    controller: { name: 'c', address: '127.0.0.1:1' },
  };
  const stolen = ca.sign(controller);
  const revoked = new X509Certificate(stolen.certificate).serialNumber;
  const cases = [
    ['expired', ca.sign(controller, [-3, -1]), /expired/],
    ['not valid yet', ca.sign(controller, [1, 3]), /not yet valid/],
    ['revoked', stolen, /was revoked/],
    ['of another CA', new FreeAuthority().sign(controller), /self-signed certificate in certificate chain/],
    ['a host', ca.sign({ role: 'host', id: newId() }), /not the certificate of a controller/],
    ['good', ca.sign(controller), null],
  ] as const;
  for (const [name, material, reason] of cases) {
    const server = createServer({ ...secureContextOptions(material), ALPNProtocols: ['h2'] });
    let heard = 0;
    const sockets: TLSSocket[] = [];
    server.on('secureConnection', (socket) => {
      sockets.push(socket);
      socket.on('data', (data: Buffer) => (heard += data.length)).on('error', () => undefined);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const address = server.address();
    const port = typeof address === 'object' ? address?.port : undefined;
    const channel = joinedChannelOf(`127.0.0.1:${port}`, identitiesOf(identity, [revoked]));
    const { said, end } = await sending(t, channel, hostId);
    if (reason === null) await eventually(() => heard > 0);
    else {
      const line = await eventually(() => said.find((text) => text.includes('reports wait')));
      t.match(line, reason, name);
      t.equal(heard, 0, `${name}: it hears nothing`);
    }
    await end();
    for (const socket of sockets) socket.destroy();
    server.close();
  }
});

void t.test('a host of another CA, and one without a certificate, report nothing', async (t) => {
  const receiver = await receiverFor(t);
  const stranger = enrolHost(await openAuthority(t));
  const said = await report(t, { ...receiver, identity: stranger }, stranger.hostId);
  await eventually(() => said.some((line) => line.includes('reports wait in the outbox')));
  t.same(receiver.hosts, []);
  t.throws(() => channelOf('192.0.2.7:7421'), { code: 'CONTROLLER_REFUSED' });
});
