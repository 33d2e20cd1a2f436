import { randomBytes, randomInt } from 'node:crypto';
import t from 'tap';
import { WeakS3 } from '../../test/sim/weakS3.ts';
import { type S3Request, s3Error } from '../../test/sim/weakS3Bucket.ts';
import { openTestBackend, testLimits } from './s3Fixture.ts';

/* Uploads in parts; creation as such is tested in s3Backend.test.ts. */

const sizeBytes = 10 * 16 * 1024 + 77;
const key = 'backups/of-us/packs/a';
const isPart = ({ method, query }: S3Request): boolean => method === 'PUT' && query.has('partNumber');
const isEnd = ({ method, query }: S3Request): boolean => method === 'POST' && query.has('uploadId');

/** The same bytes in buffers that end anywhere, some of them empty. */
function cutAnywhere(content: Buffer): readonly Buffer[] {
  const cuts = Array.from({ length: 20 }, () => randomInt(content.length)).toSorted(
    (one, other) => one - other,
  );
  return [0, ...cuts].map((from, index) => content.subarray(from, cuts[index]));
}

void t.test('what is large goes in parts, and comes back whole', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server);
  const content = randomBytes(sizeBytes);
  t.equal(await backend.create('packs/a', cutAnywhere(content)), 'created');
  t.equal(server.requests.filter(isPart).length, 11);
  t.ok((await backend.read('packs/a'))?.equals(content));
  t.equal(await backend.size('packs/a'), sizeBytes);
  server.requests.length = 0;
  t.equal(await backend.create('packs/a', [content]), 'exists');
  t.notOk(server.requests.some(isPart), 'what is there is not sent again');
  t.equal(server.bucket.uploads.size, 0);
});

void t.test('an end whose answer was lost is known again as our own', async (t) => {
  for (const conditions of ['honoured', 'ignored'] as const) {
    await using server = await WeakS3.start({ conditions });
    const backend = await openTestBackend(server);
    server.intervene({ when: isEnd, fault: 'cutAfter' });
    t.equal(await backend.create('packs/a', [randomBytes(sizeBytes)]), 'created', conditions);
    server.bucket.objects.delete(key);
    server.intervene({
      when: isEnd,
      fault: 'cutBefore',
      first: () => server.bucket.plant(key, Buffer.from('theirs')),
    });
    t.equal(await backend.create('packs/a', [randomBytes(sizeBytes)]), 'exists', 'or as that of others');
    t.equal(String(await backend.read('packs/a')), 'theirs');
    t.equal(server.bucket.uploads.size, 0, 'whose parts are taken away');
  }
});

void t.test(
  'an upload whose parts somebody has taken away is an error, and no object of others',
  async (t) => {
    await using server = await WeakS3.start();
    const backend = await openTestBackend(server);
    server.intervene({ when: isEnd, fault: 'cutBefore', first: () => server.bucket.uploads.clear() });
    await t.rejects(backend.create('packs/a', [randomBytes(sizeBytes)]), {
      code: 'STORAGE_FAILED',
      message: /NoSuchUpload/,
    });
  },
);

void t.test('an upload that fails or is aborted leaves neither an object nor parts', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server);
  const content = [randomBytes(sizeBytes)];
  let parts = 0;
  const third = (request: S3Request): boolean => isPart(request) && ++parts === 3;
  server.intervene({ when: third, fault: s3Error(403, 'QuotaExceeded') });
  await t.rejects(backend.create('packs/a', content), { code: 'STORAGE_FULL', hint: /quota/ });
  t.equal(server.bucket.uploads.size, 0);

  parts = 0;
  const stop = new AbortController();
  const reason = new Error('enough');
  server.intervene({ when: third, fault: 'silence', first: () => stop.abort(reason) });
  await t.rejects(backend.create('packs/a', content, { signal: stop.signal }), reason);
  t.equal(server.bucket.uploads.size, 0);
  t.equal(await backend.read('packs/a'), null);
});

void t.test('parts that nobody could take away are removed later, if they are old enough', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server, { limits: { attemptsMax: 2 } });
  const other = await openTestBackend(server, { prefix: 'backups/of-others' });
  server.intervene({ when: isPart, fault: 'unavailable', times: 1000 });
  server.intervene({ when: ({ method }) => method === 'DELETE', fault: 'unavailable', times: 1000 });
  const unavailable = { code: 'STORAGE_UNREACHABLE', message: /503 SlowDown/ };
  await t.rejects(backend.create('packs/a', [randomBytes(sizeBytes)]), unavailable);
  await t.rejects(other.create('packs/a', [randomBytes(sizeBytes)]), unavailable);
  server.forget();
  t.equal(server.bucket.uploads.size, 2);
  t.equal(await backend.removeLeftovers(new Date(0)), 0);
  t.equal(await backend.removeLeftovers(new Date(Date.now() + 1000)), 1);
  t.same(
    [...server.bucket.uploads.values()].map((upload) => upload.key),
    ['backups/of-others/packs/a'],
  );
});

void t.test('with faults everywhere, what was created is whole, and was created once', async (t) => {
  const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
  t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats it`);
  const rates = { cutBefore: 0.05, cutAfter: 0.05, unavailable: 0.05, failedAfter: 0.05, conflict: 0.05 };
  await using server = await WeakS3.start({ rates, seed });
  const clients = await Promise.all([1, 2, 3].map(async () => openTestBackend(server)));
  for (let round = 0; round < 10; round++) {
    const contents = clients.map(() => randomBytes((testLimits.multipartBytes ?? 0) + (round - 5) * 1000));
    const results = await Promise.all(
      clients.map(async (client, index) =>
        client.create(`packs/${round}`, [contents[index] ?? Buffer.alloc(0)]),
      ),
    );
    t.equal(results.filter((result) => result === 'created').length, 1);
    const there = await clients[0]?.read(`packs/${round}`);
    t.ok(there?.equals(contents[results.indexOf('created')] ?? Buffer.alloc(0)));
  }
});
