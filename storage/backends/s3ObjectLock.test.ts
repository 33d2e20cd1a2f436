import { randomInt } from 'node:crypto';
import t, { type Test } from 'tap';
import { type LockingStore, objectLockConformance } from '../../test/conformance/objectLock.ts';
import { WeakS3, type WeakS3Options } from '../../test/sim/weakS3.ts';
import { type S3Request, s3Error } from '../../test/sim/weakS3Bucket.ts';
import { openTestBackend } from './s3Fixture.ts';

const prefix = 'backups/of-us/';
const isDeletion = ({ method }: S3Request): boolean => method === 'DELETE';

/** A bucket with object lock, and somebody who works on it past the server. */
async function lockingStore(t: Test, options: Omit<WeakS3Options, 'isLocking'>): Promise<LockingStore> {
  const server = await WeakS3.start({ ...options, isLocking: true });
  t.teardown(async () => server.stop());
  const { bucket } = server;
  const { versions } = bucket;
  const remove = (name: string, query = ''): void => {
    const request = { method: 'DELETE', key: prefix + name, headers: {}, body: Buffer.alloc(0) };
    bucket.act({ ...request, query: new URLSearchParams(query) }, false);
  };
  return {
    backend: await openTestBackend(server),
    intruder: {
      delete: async (name) => remove(name),
      purge: async (name) => {
        for (const { versionId } of versions.of(prefix + name)) remove(name, `versionId=${versionId}`);
        return versions.of(prefix + name).length;
      },
      overwrite: async (name, content) => bucket.plant(prefix + name, Buffer.from(content)),
    },
  };
}

void t.test('a bucket with object lock', async (t) => {
  await objectLockConformance(t, async (st) => lockingStore(st, {}));
});

void t.test('a bucket with object lock and a tenth of all requests failing somehow', async (t) => {
  const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
  t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats its faults`);
  const rates = {
    cutBefore: 0.02,
    cutAfter: 0.02,
    unavailable: 0.02,
    failedAfter: 0.02,
    conflict: 0.01,
    cutBody: 0.02,
    shortBody: 0.02,
    brokenXml: 0.02,
  };
  await objectLockConformance(t, async (st) => lockingStore(st, { rates, seed }));
});

void t.test('a server that takes what it does not know, and ignores it, is found out', async (t) => {
  await using server = await WeakS3.start();
  const { objectLock } = await openTestBackend(server);
  t.equal(await objectLock.isEnforced(), false);
});

void t.test('so is one that says it has locked, and deletes all the same', async (t) => {
  await using server = await WeakS3.start({ isLocking: true });
  server.bucket.versions.now = () => Date.now() + 365 * 24 * 3_600_000;
  const { objectLock } = await openTestBackend(server);
  t.equal(await objectLock.isEnforced(), false);
});

void t.test('so is one whose bucket was made without', async (t) => {
  await using server = await WeakS3.start();
  const isLocked = ({ headers }: S3Request): boolean => headers['x-amz-object-lock-mode'] !== undefined;
  for (const answer of [s3Error(400, 'InvalidRequest'), s3Error(501, 'NotImplemented')]) {
    server.intervene({ when: isLocked, fault: answer });
    const { objectLock } = await openTestBackend(server);
    t.equal(await objectLock.isEnforced(), false);
  }
});

void t.test('who may delete no versions is not told that they are locked', async (t) => {
  await using server = await WeakS3.start({ isLocking: true });
  const backend = await openTestBackend(server);
  server.intervene({ when: isDeletion, fault: s3Error(403, 'AccessDenied'), times: 1000 });
  const denied = { code: 'STORAGE_DENIED', hint: /s3:DeleteObjectVersion/ };
  await t.rejects(backend.objectLock.isEnforced(), denied);
  await backend.create('sessions/a', [Buffer.from('x')]);
  await t.rejects(backend.objectLock.remove('sessions/a'), denied);
});

void t.test(
  'a retention that is changed goes with an MD5, and nothing that only some servers know',
  async (t) => {
    await using server = await WeakS3.start({ isLocking: true });
    const backend = await openTestBackend(server);
    await backend.create('packs/a', [Buffer.from('x')]);
    await backend.objectLock.retain('packs/a', new Date(Date.now() + 3_600_000));
    const sent = server.requests.find(({ query }) => query.has('retention'));
    t.match(sent?.headers, { 'content-md5': /^[\w+/]{22}==$/ });
    t.notMatch(Object.keys(sent?.headers ?? {}).join(' '), /x-amz-checksum|x-amz-sdk-checksum/);
  },
);

void t.test('large objects that go in parts are under retention, too', async (t) => {
  await using server = await WeakS3.start({ isLocking: true });
  const backend = await openTestBackend(server);
  const retainUntil = new Date(Math.ceil(Date.now() / 1000) * 1000 + 3_600_000);
  await backend.create('packs/large', [Buffer.alloc(200_000, 7)], { retainUntil });
  t.same((await backend.objectLock.status('packs/large'))?.retainedUntil, retainUntil);
});

void t.test('a displaced object is found wherever the pages of the listing end', async (t) => {
  await using server = await WeakS3.start({ isLocking: true });
  const backend = await openTestBackend(server);
  const retainUntil = new Date(Date.now() + 3_600_000);
  const names = Array.from({ length: 7 }, (_, number) => `packs/${number}`);
  for (const name of names) await backend.create(name, [Buffer.from(name)], { retainUntil });
  // More versions than are on a page.
  for (const name of names.slice(2, 4))
    for (let time = 0; time < 4; time++) server.bucket.plant(prefix + name, Buffer.from(`${time}`));
  const found: string[] = [];
  for await (const { name } of backend.objectLock.displaced('packs/')) found.push(name);
  t.same(found, ['packs/2', 'packs/3']);
});
