import { randomBytes } from 'node:crypto';
import dns from 'node:dns';
import t from 'tap';
import { WeakS3 } from '../../test/sim/weakS3.ts';
import { type S3Request, s3Error } from '../../test/sim/weakS3Bucket.ts';
import { listAll } from './backend.ts';
import { openTestBackend } from './s3Fixture.ts';

const prefix = 'backups/of-us/';
const text = (content: string): readonly Buffer[] => [Buffer.from(content)];
const put =
  (name: string) =>
  ({ method, key }: S3Request): boolean =>
    method === 'PUT' && key === prefix + name;
const any = (): boolean => true;

void t.test('a creation whose answer was lost is known again as our own', async (t) => {
  for (const conditions of ['honoured', 'ignored'] as const) {
    for (const fault of ['cutAfter', 'failedAfter'] as const) {
      await using server = await WeakS3.start({ conditions });
      const backend = await openTestBackend(server);
      server.intervene({ when: put('manifests/a'), fault });
      t.equal(await backend.create('manifests/a', text('x')), 'created', `${conditions}, ${fault}`);
      t.equal(await backend.create('manifests/a', text('x')), 'exists', 'and of another call it is not');
    }
  }
});

void t.test('who comes first while our request is lost keeps the name', async (t) => {
  for (const conditions of ['honoured', 'ignored', 'refused'] as const) {
    await using server = await WeakS3.start({ conditions });
    const backend = await openTestBackend(server);
    server.intervene({
      when: put('manifests/a'),
      fault: 'cutBefore',
      first: () => server.bucket.plant(`${prefix}manifests/a`, Buffer.from('theirs')),
    });
    t.equal(await backend.create('manifests/a', text('ours')), 'exists', conditions);
    t.equal(String(await backend.read('manifests/a')), 'theirs');
  }
});

void t.test('a server that ignores or refuses conditions is found out, and overwrites nothing', async (t) => {
  for (const conditions of ['ignored', 'refused'] as const) {
    await using server = await WeakS3.start({ conditions });
    const backend = await openTestBackend(server);
    t.equal(await backend.createsExclusively(), false, conditions);
    t.equal(await backend.create('manifests/a', text('first')), 'created');
    t.equal(await backend.create('manifests/a', text('second')), 'exists');
    t.equal(String(await backend.read('manifests/a')), 'first');
  }
  await using server = await WeakS3.start();
  t.equal(await (await openTestBackend(server)).createsExclusively(), true);
  t.equal(await (await openTestBackend(server)).createsExclusively(), true, 'also by the next one who asks');
});

void t.test(
  'without conditions, who was overwritten right away does not believe to have created',
  async (t) => {
    await using server = await WeakS3.start({ conditions: 'ignored' });
    const backend = await openTestBackend(server);
    await backend.createsExclusively();
    let looks = 0;
    server.intervene({
      // The look after the act.
      when: ({ method, key }) => method === 'GET' && key === `${prefix}manifests/a` && ++looks === 2,
      fault: 'cutBefore',
      first: () => server.bucket.plant(`${prefix}manifests/a`, Buffer.from('theirs')),
    });
    t.equal(await backend.create('manifests/a', text('ours')), 'exists');
  },
);

void t.test('once a server was seen to honour conditions, nothing makes us do without', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server);
  await backend.create('manifests/a', text('x'));
  server.intervene({ when: put('manifests/b'), fault: s3Error(501, 'NotImplemented') });
  await t.rejects(backend.create('manifests/b', text('x')), { code: 'STORAGE_FAILED', retryable: false });
  t.equal(await backend.read('manifests/b'), null);
});

void t.test('what is sent has a length and an MD5, and nothing that only some servers know', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server);
  await backend.create('packs/a', [randomBytes(1000), randomBytes(50_000)]);
  const [sent] = server.requests.filter(put('packs/a'));
  t.match(sent?.headers, { 'content-length': '51000', 'content-md5': /^[\w+/]{22}==$/ });
  const names = Object.keys(sent?.headers ?? {}).join(' ');
  t.notMatch(names, /x-amz-checksum|x-amz-sdk-checksum|x-amz-trailer|x-amz-decoded|transfer-encoding|expect/);
});

void t.test('everything stands below the prefix, and nothing else is seen', async (t) => {
  await using server = await WeakS3.start();
  const [one, other, whole] = [
    await openTestBackend(server),
    await openTestBackend(server, { prefix: 'backups/of-us-too' }),
    await openTestBackend(server, { prefix: undefined }),
  ];
  await one.create('keys/a', text('one'));
  await other.create('keys/a', text('other'));
  await whole.create('keys/a', text('whole'));
  t.equal(String(await one.read('keys/a')), 'one');
  await other.delete('keys/a');
  t.same(await listAll(one, 'keys/'), [{ name: 'keys/a', sizeBytes: 3 }]);
  t.same(await listAll(whole, 'keys/'), [{ name: 'keys/a', sizeBytes: 5 }]);
  server.bucket.plant(`${prefix}keys/UPPER`, Buffer.from('foreign'));
  t.same(await listAll(one, 'keys/'), [{ name: 'keys/a', sizeBytes: 3 }], 'no name of ours');
});

void t.test('the bucket can stand before the host', async (t) => {
  await using server = await WeakS3.start();
  const { lookup } = dns;
  t.teardown(() => (dns.lookup = lookup));
  const asked: string[] = [];
  // There is no name server for this; Node asks here for every connection.
  dns.lookup = Object.assign((name: string, options: object, done: (...answer: unknown[]) => void) => {
    asked.push(name);
    lookup('127.0.0.1', options, done);
  }, lookup);
  const endpoint = `http://s3.test:${server.port}`;
  const backend = await openTestBackend(server, { endpoint, addressing: 'virtualHost' });
  t.equal(await backend.create('keys/a', text('x')), 'created');
  t.equal(String(await backend.read('keys/a')), 'x');
  t.same([...new Set(asked)], ['vault.s3.test']);
  t.ok(server.requests.every(({ url }) => url.startsWith(`/${prefix}`)));
});

void t.test('a listing comes in pages; one that is not whole is no listing', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server);
  for (let n = 0; n < 10; n++) await backend.create(`packs/${n}`, text('x'));
  server.requests.length = 0;
  t.equal((await listAll(backend, 'packs/')).length, 10);
  t.equal(server.requests.length, 4);
  const listing = (...lines: string[]): string => `<ListBucketResult>${lines.join('')}</ListBucketResult>`;
  const entry = `<Contents><Key>${prefix}packs/1</Key><Size>1</Size></Contents>`;
  const answers = {
    'without its end': `<ListBucketResult><IsTruncated>false</IsTruncated>${entry}`,
    'of fewer names than it says': listing('<IsTruncated>false</IsTruncated><KeyCount>2</KeyCount>', entry),
    'that does not say whether it goes on': listing(entry),
    'that goes on nowhere': listing('<IsTruncated>true</IsTruncated>', entry),
    'of something else': listing('<IsTruncated>false</IsTruncated>', entry.replace(prefix, '')),
    'that is none': '<html>Welcome</html>',
    'that is nothing': '',
  };
  for (const [what, body] of Object.entries(answers)) {
    server.intervene({ when: any, fault: { status: 200, body }, times: 1000 });
    const impatient = await openTestBackend(server, { limits: { attemptsMax: 2 } });
    await t.rejects(listAll(impatient, 'packs/'), { code: 'STORAGE_FAILED', retryable: true }, what);
    server.forget();
  }
  const endless = listing(
    '<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>',
    entry,
  );
  server.intervene({ when: any, fault: { status: 200, body: endless }, times: 1000 });
  await t.rejects(listAll(backend, 'packs/'), { code: 'STORAGE_FAILED' }, 'that leads to itself');
});

void t.test('only the word of the server itself makes an object absent', async (t) => {
  await using server = await WeakS3.start();
  const elsewhere = await openTestBackend(server, { bucket: 'other' });
  const noBucket = { code: 'STORAGE_UNREACHABLE', hint: /create the bucket other/, retryable: false };
  await t.rejects(elsewhere.read('config/00000001'), noBucket);
  await t.rejects(elsewhere.size('config/00000001'), noBucket);
  await t.rejects(elsewhere.delete('config/00000001'), noBucket);
  await t.rejects(listAll(elsewhere, 'config/'), noBucket);
  await t.rejects(elsewhere.create('config/00000001', text('x')), noBucket);

  const backend = await openTestBackend(server);
  server.intervene({ when: any, fault: { status: 404, body: '<html>Not here</html>' }, times: 2 });
  await t.rejects(backend.read('config/00000001'), { code: 'STORAGE_FAILED' }, 'a proxy that knows nothing');
  await t.rejects(backend.size('config/00000001'), { code: 'STORAGE_FAILED' });
  t.equal(await backend.read('config/00000001'), null);
});

void t.test('of what comes back no more is taken than was asked for, and nothing else', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server, { limits: { attemptsMax: 2, objectBytesMax: 1000 } });
  await backend.create('packs/large', [randomBytes(1001)]);
  await t.rejects(backend.read('packs/large'), { code: 'STORAGE_FAILED', message: /1001 bytes where 1000/ });
  const range = { offsetBytes: 100, lengthBytes: 10 };
  const answers = {
    'the whole object': { status: 200, body: randomBytes(5) },
    'another part': { status: 206, body: randomBytes(10), headers: { 'content-range': 'bytes 90-99/1001' } },
    'a shorter part': {
      status: 206,
      body: randomBytes(9),
      headers: { 'content-range': 'bytes 100-108/1001' },
    },
    'less than it says': {
      status: 206,
      body: randomBytes(9),
      headers: { 'content-range': 'bytes 100-109/1001' },
    },
    'more than it says': {
      status: 206,
      body: randomBytes(11),
      headers: { 'content-range': 'bytes 100-109/1001' },
    },
    'a part of nowhere': { status: 206, body: randomBytes(10), headers: { 'content-range': 'bytes */1001' } },
  };
  for (const [what, fault] of Object.entries(answers)) {
    server.intervene({ when: any, fault, times: 2 });
    await t.rejects(
      backend.read('packs/large', { range }),
      { code: 'STORAGE_FAILED', retryable: true },
      what,
    );
  }
  t.equal((await backend.read('packs/large', { range }))?.length, 10);

  await backend.create('packs/small', text('0123456789'));
  for (const fault of ['shortBody', 'cutBody'] as const) {
    server.intervene({ when: any, fault });
    t.equal(String(await backend.read('packs/small')), '0123456789', `${fault} of a whole object`);
  }
});

void t.test('an empty object is one', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server);
  server.intervene({ when: put('keys/none'), fault: 'cutAfter' });
  t.equal(await backend.create('keys/none', []), 'created');
  t.equal(await backend.size('keys/none'), 0);
  t.equal((await backend.read('keys/none'))?.length, 0);
  t.equal(await backend.create('keys/none', []), 'exists');
});

void t.test('a call that is aborted ends at once, wherever it is', async (t) => {
  await using server = await WeakS3.start();
  const reason = new Error('enough');
  const backend = await openTestBackend(server);
  await backend.create('packs/a', [randomBytes(1000)]);
  const waiting = new AbortController();
  server.intervene({ when: any, fault: 'silence', first: () => waiting.abort(reason) });
  await t.rejects(
    backend.read('packs/a', { signal: waiting.signal }),
    reason,
    'while it waits for an answer',
  );

  const full = await openTestBackend(server, { limits: { concurrency: 1 } });
  const [first, second] = [new AbortController(), new AbortController()];
  const arrived = new Promise<void>((resolve) => {
    server.intervene({ when: any, fault: 'silence', first: resolve });
  });
  const reading = full.read('packs/a', { signal: first.signal });
  await arrived;
  const queued = full.read('packs/a', { signal: second.signal });
  second.abort(reason);
  await t.rejects(queued, reason, 'while it waits for others');
  first.abort(reason);
  await t.rejects(reading, reason);
  t.equal((await full.read('packs/a'))?.length, 1000, 'and its place is free again');
});

void t.test(
  'a server that is not there is told soon, one that goes away meanwhile is waited for',
  async (t) => {
    await using server = await WeakS3.start();
    const away = await openTestBackend(server, { limits: { firstContactAttemptsMax: 3 } });
    const known = await openTestBackend(server, { limits: { firstContactAttemptsMax: 3 } });
    await known.create('config/00000001', [Buffer.from('content')]);
    const cut = (times: number): void =>
      server.intervene({ when: ({ method }) => method === 'GET', fault: 'cutBefore', times });
    cut(3);
    await t.rejects(away.read('config/00000001'), { code: 'STORAGE_UNREACHABLE', hint: /curl -v/ });
    cut(5);
    t.same(await known.read('config/00000001'), Buffer.from('content'));
  },
);
