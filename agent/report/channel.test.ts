import { once } from 'node:events';
import { join } from 'node:path';
import { connect } from 'node:tls';
import t, { type Test } from 'tap';
import { createLogger } from '../../common/log.ts';
import { newId } from '../../common/ids.ts';
import { openStub, type Stub } from '../../controller/stub.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { alert } from '../../test/sim/reports.ts';
import { enrolHost, openAuthority, temporaryDirectory } from '../../test/tls/authority.ts';
import type { Identity } from '../identity/identity.ts';
import { IdentityStore } from '../identity/identityStore.ts';
import { channelOf, joinedChannelOf } from './channel.ts';
import { OutboxKeeper } from './outboxKeeper.ts';
import { Sender } from './sender.ts';

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

/** Notes one report and sends it, as a host that says that it is `id`. */
async function reporting(
  test: Test,
  { stub, identity }: Pick<Receiver, 'stub' | 'identity'>,
  id: string,
  prepare: (store: IdentityStore) => Promise<void> = () => Promise.resolve(),
) {
  const directory = await temporaryDirectory(test, 'host');
  const store = new IdentityStore(join(directory, 'identity'));
  await store.adopt(identity, 0);
  await prepare(store);
  const said: string[] = [];
  let sender: Sender | undefined;
  const log = createLogger({ destination: { write: (line: string) => void said.push(line) } });
  const keeper = new OutboxKeeper(
    join(directory, 'outbox.sqlite'),
    { maxBytes: 1024 * 1024 },
    { log, onNoted: () => sender?.wake() },
  );
  const stop = new AbortController();
  const channel = joinedChannelOf(stub.address, store);
  sender = new Sender({ keeper, channel, host: { id, name: 'h', version: '0' }, log });
  keeper.note({ reports: [alert('a', 'x')] });
  const sending = sender.run(stop.signal);
  test.teardown(async () => {
    stop.abort();
    await sending;
    keeper[Symbol.dispose]();
  });
  return { said, store, sender, keeper };
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

void t.test('a host of another CA, and one without a certificate, report nothing', async (t) => {
  const receiver = await receiverFor(t);
  const stranger = enrolHost(await openAuthority(t));
  const said = await report(t, { ...receiver, identity: stranger }, stranger.hostId);
  await eventually(() => said.some((line) => line.includes('reports wait in the outbox')));
  t.same(receiver.hosts, []);
  t.throws(() => channelOf('192.0.2.7:7421'), { code: 'CONTROLLER_REFUSED' });
});
