import { chmod, mkdir, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { FaultyFiles } from '../../test/sim/faultyFiles.ts';
import { enrolHost, openAuthority, temporaryDirectory } from '../../test/tls/authority.ts';
import { checkIdentity } from './identity.ts';
import { IdentityStore } from './identityStore.ts';

void t.test('a host has no identity before it joins; then the one that it was given', async (t) => {
  const ca = await openAuthority(t);
  const directory = join(await temporaryDirectory(t, 'identity'), 'identity');
  const store = new IdentityStore(directory);
  t.equal(await store.current(), null);
  t.equal(await store.generation(), 0);
  const hostId = newId();
  await store.pending('join', hostId);
  const identity = enrolHost(ca, hostId);
  await store.adopt(identity, 0);
  t.same(await store.current(), { ...identity, generation: 1 });
  t.equal((await stat(directory)).mode & 0o777, 0o700);
  t.equal((await stat(join(directory, 'generation-000001/key.pem'))).mode & 0o777, 0o600);
});

void t.test('who asks again asks with the same key, for each purpose its own', async (t) => {
  const store = new IdentityStore(await temporaryDirectory(t, 'identity'));
  const first = await store.pending('join', newId());
  t.same(await store.pending('join', newId()), first);
  t.not((await store.pending('renewal', newId())).key, first.key);
});

void t.test('a certificate that does not fit changes nothing', async (t) => {
  const [ca, other] = [await openAuthority(t), await openAuthority(t)];
  const store = new IdentityStore(await temporaryDirectory(t, 'identity'));
  const good = enrolHost(ca);
  const before = await store.adopt(good, 0);
  const wrong = [
    { ...good, key: enrolHost(ca).key },
    { ...good, authorities: other.certificate },
    { ...good, hostId: newId() },
    { ...good, ...ca.controllerMaterial() },
  ];
  for (const identity of wrong) await t.rejects(store.adopt(identity, 1), { code: 'CERTIFICATE_INVALID' });
  t.same(await store.current(), before);
});

void t.test('of two processes that replace the same identity one wins, and the other is told', async (t) => {
  const ca = await openAuthority(t);
  const directory = await temporaryDirectory(t, 'identity');
  const store = new IdentityStore(directory);
  const hostId = newId();
  await store.adopt(enrolHost(ca, hostId), 0);
  const others = [0, 1].map(() => enrolHost(ca));
  const outcomes = await Promise.allSettled(
    others.map((identity) => new IdentityStore(directory).adopt(identity, 1)),
  );
  t.same(outcomes.map(({ status }) => status).toSorted(), ['fulfilled', 'rejected']);
  t.match(
    outcomes.find(({ status }) => status === 'rejected'),
    { reason: { code: 'IDENTITY_REPLACED' } },
  );
  t.equal((await store.current())?.generation, 2);
  t.same(
    (await readdir(directory)).filter((name) => name.endsWith('.tmp')),
    [],
    'nothing is left behind',
  );
});

void t.test('whatever write is the last one, the old identity is whole or the new one is', async (t) => {
  const ca = await openAuthority(t);
  const root = await temporaryDirectory(t, 'identity');
  const [first, next] = [enrolHost(ca), enrolHost(ca)];
  using faulty = new FaultyFiles(root);
  const renew = async (directory: string): Promise<void> => {
    const store = new IdentityStore(directory);
    await store.pending('renewal', next.hostId);
    await store.adopt(next, 1);
    await store.keepRevoked(['AB']);
    await store.sweep();
  };
  const prepared = async (name: string): Promise<string> => {
    const directory = join(root, name);
    await mkdir(directory);
    await new IdentityStore(directory).adopt(first, 0);
    return directory;
  };
  const directory = await prepared('all');
  await faulty.run(null, [], () => renew(directory));
  const calls = faulty.calls.length;
  t.ok(calls > 30, `${calls} calls`);
  const seen = new Set<number>();
  for (const when of ['before', 'after'] as const)
    for (let at = 0; at < calls; at += 1) {
      const path = await prepared(`${when}-${at}`);
      // From then on nothing can be written or read: as after a kill, also nothing is cleared up.
      const fault = { errno: 'EIO', when, afterwards: 'EIO' };
      const failed = await faulty
        .run(at, [fault], () => renew(path))
        .then(() => false)
        .catch(() => true);
      const store = new IdentityStore(path);
      const found = await store.current();
      t.ok(found, `${when} call ${at}`);
      if (found === null) continue;
      checkIdentity(found);
      t.same(found, { ...(found.generation === 1 ? first : next), generation: found.generation });
      seen.add(found.generation);
      if (failed && found.generation === 1) {
        const { key } = await store.pending('renewal', next.hostId);
        t.same((await store.pending('renewal', next.hostId)).key, key, 'it can be asked again');
      }
      await store.sweep();
    }
  t.same(seen, new Set([1, 2]), 'both were seen');
});

void t.test('a sweep leaves the identity in force, and what is still asked for', async (t) => {
  const ca = await openAuthority(t);
  const directory = await temporaryDirectory(t, 'identity');
  const store = new IdentityStore(directory);
  const identity = enrolHost(ca);
  await store.adopt(enrolHost(ca), 0);
  await store.adopt(identity, 1);
  await store.pending('renewal', identity.hostId);
  await mkdir(join(directory, 'pending-join'));
  await writeFile(join(directory, 'pending-join/key.pem'), identity.key);
  await writeFile(join(directory, 'pending-join/request.der'), '');
  const [forgotten, fresh] = [
    '.generation-000003.0123456789abcdef.tmp',
    '.pending-join.0123456789abcdef.tmp',
  ];
  for (const name of [forgotten, fresh]) await mkdir(join(directory, name));
  await utimes(join(directory, forgotten), 0, 0);
  await store.sweep();
  t.same((await readdir(directory)).toSorted(), [fresh, 'generation-000002', 'pending-renewal']);
});

void t.test('an identity that cannot be used is told, never passed over', async (t) => {
  const ca = await openAuthority(t);
  const directory = await temporaryDirectory(t, 'identity');
  const store = new IdentityStore(directory);
  await store.adopt(enrolHost(ca), 0);
  await store.adopt(enrolHost(ca), 1);
  const key = join(directory, 'generation-000002/key.pem');
  await chmod(key, 0o640);
  await t.rejects(store.current(), { code: 'IDENTITY_DAMAGED', message: /others .* can read/ });
  await chmod(key, 0o600);
  await writeFile(key, await readFile(join(directory, 'generation-000001/key.pem')));
  await t.rejects(store.current(), { code: 'IDENTITY_DAMAGED', message: /another key/ });
  await rm(key);
  await t.rejects(store.current(), { code: 'IDENTITY_DAMAGED', hint: /join again/ });
  t.equal(await store.generation(), 2, 'and the host can still join again');
});

void t.test('a host that leaves has nothing any more, and can join again', async (t) => {
  const ca = await openAuthority(t);
  const directory = await temporaryDirectory(t, 'identity');
  const store = new IdentityStore(directory);
  await store.leave();
  const identity = enrolHost(ca);
  await store.adopt(enrolHost(ca), 0);
  await store.adopt(identity, 1);
  await store.pending('renewal', identity.hostId);
  await store.keepRevoked(['1']);
  await store.leave();
  t.same(await readdir(directory), []);
  t.equal(await store.current(), null);
  await t.rejects(store.adopt(enrolHost(ca), 2), { code: 'IDENTITY_REPLACED' }, 'a renewal comes too late');
  await store.adopt(enrolHost(ca), 0);
  t.equal(await store.generation(), 1);
});

void t.test('whatever a leave is cut short by, the host has its identity as it was, or none', async (t) => {
  const ca = await openAuthority(t);
  const root = await temporaryDirectory(t, 'identity');
  const [earlier, identity] = [enrolHost(ca), enrolHost(ca)];
  using faulty = new FaultyFiles(root);
  const prepared = async (name: string): Promise<IdentityStore> => {
    const store = new IdentityStore(join(root, name));
    await store.adopt(earlier, 0);
    await store.adopt(identity, 1);
    await store.keepRevoked(['1']);
    return store;
  };
  const whole = await prepared('all');
  await faulty.run(null, [], () => whole.leave());
  const calls = faulty.calls.length;
  const seen = new Set<string>();
  for (const when of ['before', 'after'] as const)
    for (let at = 0; at < calls; at += 1) {
      const name = `${when}-${at}`;
      const store = await prepared(name);
      // From then on nothing can be done, as after a kill.
      const fault = { errno: 'EIO', when, afterwards: 'EIO' };
      await faulty.run(at, [fault], () => store.leave()).catch(() => undefined);
      const found = await store.current();
      seen.add(found === null ? 'none' : 'whole');
      if (found !== null) {
        t.same(found, { ...identity, generation: 2 }, name);
        t.same([...(await store.revoked())], ['1'], 'with what was revoked');
      }
      await store.leave();
      t.same(await readdir(join(root, name)), [], 'and goes on where it was cut');
    }
  t.same(seen, new Set(['whole', 'none']), 'both were seen');
});
