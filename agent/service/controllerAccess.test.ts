import { once } from 'node:events';
import { X509Certificate } from 'node:crypto';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { createLogger } from '../../common/log.ts';
import { agentCredentials } from '../../controller/agentChannel.ts';
import type { CertificateAuthority } from '../../controller/ca.ts';
import { enrolHost, openAuthority, temporaryDirectory } from '../../test/tls/authority.ts';
import { makeHost, startController } from '../../test/tls/controllerBench.ts';
import { TextClient, TextService } from '../../test/tls/textService.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { renewIdentity } from '../enrolment/joining.ts';
import type { KeptIdentity } from '../identity/identity.ts';
import { ControllerListener, identityDirectory, keepControllerAccess } from './controllerAccess.ts';
import { IdentityStore } from '../identity/identityStore.ts';

interface Bench {
  readonly ca: CertificateAuthority;
  readonly api: TextService;
  readonly identity: KeptIdentity;
  readonly access: ControllerListener;
  readonly log: string[];
}

/** A host that has joined and lets its controller in. */
async function open(t: Test): Promise<Bench> {
  const ca = await openAuthority(t, { name: 'c1' });
  const identity = { ...enrolHost(ca), generation: 1 };
  const [api, log] = [new TextService(), [] as string[]];
  const destination = { write: (line: string) => log.push(line) };
  const access = new ControllerListener(
    () => api.server,
    '127.0.0.1:0',
    createLogger({ level: 'info', destination }),
  );
  t.teardown(() => access[Symbol.asyncDispose]());
  await access.follow(identity, new Set());
  return { ca, api, identity, access, log };
}

const logLine = z.looseObject({ msg: z.string(), port: z.number().optional() });

const any = (): boolean => true;

void t.test('the controller calls the API of the host that it means, and is known by its name', async (t) => {
  const { ca, identity, access } = await open(t);
  const credentials = agentCredentials(ca.controllerMaterial(), identity.hostId, any);
  t.equal(await new TextClient(t, access.port, credentials).whoAmI(), 'stillpoint://controller/c1');
});

void t.test('the certificate of a host, of this one or another, opens no API', async (t) => {
  const { ca, identity, access, log } = await open(t);
  for (const host of [identity, enrolHost(ca)]) {
    log.length = 0;
    await t.rejects(new TextClient(t, access.port, agentCredentials(host, identity.hostId, any)).whoAmI());
    t.match(log.join(''), /it is no controller: URI:stillpoint:\/\/host/);
  }
});

void t.test(
  'a controller notices that another host answers, or one whose certificate was revoked',
  async (t) => {
    const { ca, identity, access } = await open(t);
    const material = ca.controllerMaterial();
    const other = agentCredentials(material, enrolHost(ca).hostId, any);
    await t.rejects(new TextClient(t, access.port, other).whoAmI(), {
      message: /was called, and .* answers/,
    });
    ca.revokeHost(identity.hostId);
    const revoked = agentCredentials(material, identity.hostId, (serial) => ca.isGood(serial));
    await t.rejects(new TextClient(t, access.port, revoked).whoAmI(), { message: /was revoked/ });
  },
);

void t.test(
  'a certificate is renewed while calls run: they go on, and new ones see the new one',
  async (t) => {
    const { ca, api, identity, access } = await open(t);
    const material = ca.controllerMaterial();
    const controller = agentCredentials(material, identity.hostId, any);
    const stream = await new TextClient(t, access.port, controller).follow();
    const next = { ...enrolHost(ca), generation: 2 };
    await access.follow(next, new Set());
    const seen: string[] = [];
    const credentials = agentCredentials(material, next.hostId, (serial) => seen.push(serial) > 0);
    await new TextClient(t, access.port, credentials).whoAmI();
    t.same(seen, [new X509Certificate(next.certificate).serialNumber]);
    const heard = once(stream, 'data');
    api.streams[0]?.write('still here');
    t.same(await heard, ['still here']);
    const ended = once(stream, 'error');
    stream.cancel();
    await ended;
  },
);

void t.test('a controller whose certificate was revoked is put out, in the middle of a stream', async (t) => {
  const { ca, identity, access, log } = await open(t);
  const material = ca.controllerMaterial();
  const credentials = agentCredentials(material, identity.hostId, any);
  const stream = await new TextClient(t, access.port, credentials).follow();
  const ended = once(stream, 'error');
  await access.follow(identity, new Set([new X509Certificate(material.certificate).serialNumber]));
  await ended;
  await t.rejects(new TextClient(t, access.port, credentials).whoAmI());
  t.match(log.join(''), /was revoked/);
  const other = agentCredentials(ca.controllerMaterial(), identity.hostId, any);
  t.equal(await new TextClient(t, access.port, other).whoAmI(), 'stillpoint://controller/c1');
});

void t.test('while nobody knows what was revoked no controller is let in, and open ones end', async (t) => {
  const { ca, identity, access, log } = await open(t);
  const credentials = agentCredentials(ca.controllerMaterial(), identity.hostId, any);
  const stream = await new TextClient(t, access.port, credentials).follow();
  const ended = once(stream, 'error');
  await access.follow(identity, null);
  await ended;
  await t.rejects(new TextClient(t, access.port, credentials).whoAmI());
  t.match(log.join(''), /not known which certificates were revoked/);
  await access.follow(identity, new Set());
  t.equal(await new TextClient(t, access.port, credentials).whoAmI(), 'stillpoint://controller/c1');
});

void t.test(
  'the service listens as soon as its host has joined, and tells what is revoked from then on',
  async (t) => {
    const { ca, address } = await startController(t, { name: 'c1' });
    const stateDir = await temporaryDirectory(t, 'state');
    const store = new IdentityStore(identityDirectory(stateDir));
    const { join, hostId } = await makeHost(t);
    const { generation: _, ...identity } = await join(address, ca.issueToken());
    await store.adopt(identity, 0);
    const log: z.output<typeof logLine>[] = [];
    const logger = createLogger({
      level: 'info',
      destination: { write: (line) => log.push(logLine.parse(JSON.parse(line))) },
    });
    const stop = new AbortController();
    const { serialNumber } = new X509Certificate(ca.controllerMaterial().certificate);
    ca.revoke(serialNumber);
    const api = new TextService();
    const work = keepControllerAccess(
      () => api.server,
      { stateDir, listen: '127.0.0.1:0' },
      { log: logger, signal: stop.signal },
    );
    const port = await eventually(() => log.find((line) => line.port !== undefined)?.port);
    const credentials = agentCredentials(ca.controllerMaterial(), hostId, any);
    t.equal(await new TextClient(t, port, credentials).whoAmI(), 'stillpoint://controller/c1');
    t.ok((await store.revoked()).has(serialNumber));
    const kept = await store.current();
    if (kept !== null) t.equal((await renewIdentity(store, kept, new Date())).generation, 2);
    stop.abort();
    await work;
    await t.rejects(new TextClient(t, port, credentials).whoAmI(), 'nobody listens any more');
  },
);

void t.test('an address that is taken is told, and tried again', async (t) => {
  const { ca, access } = await open(t);
  const second = new ControllerListener(
    () => new TextService().server,
    `127.0.0.1:${access.port}`,
    createLogger({ level: 'silent' }),
  );
  const identity = { ...enrolHost(ca), generation: 1 };
  await t.rejects(second.follow(identity, new Set()), { code: 'EADDRINUSE' });
  await access[Symbol.asyncDispose]();
  await second.follow(identity, new Set());
  t.ok(second.port);
  await second[Symbol.asyncDispose]();
});

void t.test('a host that has left lets its controller in no more, and can join again', async (t) => {
  const { ca, identity, access, log } = await open(t);
  const material = ca.controllerMaterial();
  const credentials = agentCredentials(material, identity.hostId, any);
  const { port } = access;
  const stream = await new TextClient(t, port, credentials).follow();
  const ended = once(stream, 'error');
  await access.leave();
  await ended;
  await t.rejects(new TextClient(t, port, credentials).whoAmI());
  t.match(log.join(''), /does not listen for a controller any more/);
  await access.leave();
  await access.follow(identity, new Set());
  t.equal(await new TextClient(t, access.port, credentials).whoAmI(), 'stillpoint://controller/c1');
});
