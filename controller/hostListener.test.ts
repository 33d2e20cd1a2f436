import { once } from 'node:events';
import t from 'tap';
import { hostCredentials, joiningCredentials } from '../agent/enrolment/controllerChannel.ts';
import { enrolHost } from '../test/tls/authority.ts';
import { startController } from '../test/tls/controllerBench.ts';
import { TextClient, TextService } from '../test/tls/textService.ts';

void t.test('services for hosts are there for hosts, and for nobody without a certificate', async (t) => {
  const { server } = new TextService();
  const { ca, listener } = await startController(t, { server });
  const host = enrolHost(ca);
  const known = new TextClient(t, listener.port, hostCredentials(host, new Set()));
  t.equal(await known.whoAmI(), `stillpoint://host/${host.hostId}`);
  const unknown = new TextClient(t, listener.port, joiningCredentials(ca.certificate));
  await t.rejects(unknown.whoAmI(), { message: /UNIMPLEMENTED/ });
});

void t.test('the certificate of a controller is no certificate of a host', async (t) => {
  const { ca, listener, log } = await startController(t, { server: new TextService().server });
  const posing = { ...enrolHost(ca), ...ca.controllerMaterial() };
  await t.rejects(new TextClient(t, listener.port, hostCredentials(posing, new Set())).whoAmI());
  t.match(log.join(''), /it is no host/);
});

void t.test('a host that is revoked is put out, in the middle of a stream', async (t) => {
  const { ca, listener } = await startController(t, { server: new TextService().server });
  const [stolen, good] = [enrolHost(ca), enrolHost(ca)];
  const client = new TextClient(t, listener.port, hostCredentials(stolen, new Set()));
  const other = new TextClient(t, listener.port, hostCredentials(good, new Set()));
  const stream = await client.follow();
  t.ok(await other.whoAmI());
  const ended = once(stream, 'error');
  ca.revokeHost(stolen.hostId);
  listener.review();
  await ended;
  await t.rejects(client.whoAmI());
  t.ok(await other.whoAmI(), 'others are not touched');
});
