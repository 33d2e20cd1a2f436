import { createServer } from 'node:net';
import { once } from 'node:events';
import { join } from 'node:path';
import { readFile } from 'node:fs/promises';
import { inspect } from 'node:util';
import { execa } from 'execa';
import t from 'tap';
import { WeakS3 } from '../../test/sim/weakS3.ts';
import { s3Error } from '../../test/sim/weakS3Bucket.ts';
import { listAll } from './backend.ts';
import { openTestBackend, testCredentials } from './s3Fixture.ts';

const any = (): boolean => true;
const impatient = { attemptsMax: 3 };

void t.test('each answer of a server has a code, a hint, and says whether it can pass', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server, { limits: impatient });
  const cases = [
    [403, 'AccessDenied', 'STORAGE_DENIED', /give KEYID the rights/, 1],
    [403, 'InvalidAccessKeyId', 'STORAGE_DENIED', /check the key KEYID/, 1],
    [403, 'SignatureDoesNotMatch', 'STORAGE_DENIED', /its secret/, 1],
    [400, 'AuthorizationHeaderMalformed', 'STORAGE_DENIED', /region/, 1],
    [403, 'RequestTimeTooSkewed', 'STORAGE_DENIED', /timedatectl/, 3],
    [403, 'QuotaExceeded', 'STORAGE_FULL', /quota/, 1],
    [507, 'XMinioStorageFull', 'STORAGE_FULL', /free space/, 1],
    [404, 'NoSuchBucket', 'STORAGE_UNREACHABLE', /create the bucket vault/, 1],
    [400, 'BadDigest', 'STORAGE_FAILED', /log of the server/, 3],
    [400, 'InvalidArgument', 'STORAGE_FAILED', /log of the server/, 1],
    [409, 'OperationAborted', 'STORAGE_UNREACHABLE', /try again/, 3],
    [429, 'TooManyRequests', 'STORAGE_UNREACHABLE', /try again/, 3],
    [500, 'InternalError', 'STORAGE_UNREACHABLE', /try again/, 3],
    [503, 'SlowDown', 'STORAGE_UNREACHABLE', /try again/, 3],
  ] as const;
  for (const [status, s3Code, code, hint, requests] of cases) {
    server.requests.length = 0;
    server.intervene({ when: any, fault: s3Error(status, s3Code), times: requests });
    const message = new RegExp(
      `reading keys/a at http://127.*/vault/backups/of-us: ${status} ${s3Code}: because`,
    );
    await t.rejects(backend.read('keys/a'), { code, hint, message, retryable: requests > 1 }, s3Code);
    t.equal(server.requests.length, requests, `${s3Code}: so many requests`);
  }
});

void t.test('nobody else gets what was signed for this server', async (t) => {
  await using server = await WeakS3.start();
  await using other = await WeakS3.start();
  const backend = await openTestBackend(server);
  for (const status of [301, 302, 307, 308]) {
    const headers = {
      location: `${other.endpoint}/vault/backups/of-us/keys/a`,
      'x-amz-bucket-region': 'eu-west-1',
    };
    server.intervene({ when: any, fault: { ...s3Error(status, 'PermanentRedirect'), headers }, times: 2 });
    const elsewhere = { code: 'STORAGE_UNREACHABLE', retryable: false, hint: /served elsewhere/ };
    await t.rejects(backend.read('keys/a'), elsewhere, `${status}`);
    await t.rejects(listAll(backend, 'keys/'), elsewhere);
  }
  t.equal(other.requests.length, 0);
});

void t.test('what the server repeats of our secrets is in no error, and a client shows none', async (t) => {
  await using server = await WeakS3.start();
  const credentials = { ...testCredentials, sessionToken: 'token/of+ours==' };
  const backend = await openTestBackend(server, { credentials, limits: impatient });
  const echo = `${credentials.secretAccessKey} ${credentials.sessionToken}\u001b[2J`;
  server.intervene({ when: any, fault: s3Error(403, 'SignatureDoesNotMatch', echo) });
  const error: unknown = await backend.read('keys/a').catch((thrown: unknown) => thrown);
  t.equal(server.requests[0]?.headers['x-amz-security-token'], credentials.sessionToken);
  t.match(error, { code: 'STORAGE_DENIED', message: /\[secret\] \[secret\] \[2J$/ });
  for (const shown of [inspect(error, { depth: 20, showHidden: true }), inspect(backend, { depth: 20 })]) {
    t.notMatch(shown, /hidden\+secret|token\/of|Signature=|u001b/);
  }
});

void t.test('a clock that is wrong is corrected by the server’s', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server);
  const date = new Date(Date.now() + 3 * 3_600_000);
  const skewed = { ...s3Error(403, 'RequestTimeTooSkewed'), headers: { date: date.toUTCString() } };
  server.intervene({ when: any, fault: skewed });
  t.equal(await backend.read('keys/a'), null);
  const hour = date.toISOString().slice(0, 13).replaceAll('-', '');
  t.match(server.requests.at(-1)?.headers['x-amz-date'], new RegExp(`^${hour}`));
});

void t.test('a server that is not there, or says nothing, is unreachable', async (t) => {
  const server = await WeakS3.start();
  const unreachable = { code: 'STORAGE_UNREACHABLE', retryable: true };
  const backend = await openTestBackend(server, { limits: { ...impatient, silenceMs: 50 } });
  server.intervene({ when: any, fault: 'silence', times: 3 });
  await t.rejects(backend.read('keys/a'), { ...unreachable, message: /50 ms/ });
  server.forget();
  t.equal(await backend.read('keys/a'), null);
  await server.stop();
  await t.rejects(backend.read('keys/a'), { ...unreachable, message: /ECONNREFUSED/ });
});

void t.test('what is no S3 server is told as that', async (t) => {
  await using server = await WeakS3.start();
  const other = createServer((socket) => socket.end('220 mail.test ESMTP\r\n')).listen(0, '127.0.0.1');
  await once(other, 'listening');
  t.teardown(() => other.close());
  const address = other.address();
  const port = typeof address === 'object' ? address?.port : undefined;
  const mail = await openTestBackend(server, { endpoint: `http://127.0.0.1:${port}`, limits: impatient });
  await t.rejects(mail.read('keys/a'), { code: 'STORAGE_FAILED', retryable: true, hint: /curl -v/ });
  const endpoint = server.endpoint.replace('http:', 'https:');
  const withTls = await openTestBackend(server, { endpoint, limits: impatient });
  await t.rejects(withTls.read('keys/a'), { code: 'STORAGE_UNREACHABLE', hint: /curl -v/ });
  server.intervene({ when: any, fault: { status: 200, body: 'Welcome' }, times: 6 });
  const polite = await openTestBackend(server, { limits: impatient });
  await t.rejects(polite.create('keys/a', [Buffer.from('x')]), {
    code: 'STORAGE_FAILED',
    message: /no ETag/,
  });
});

void t.test(
  'a server with a certificate of its own is trusted if caFile says so, and only then',
  async (t) => {
    const directory = t.testdir();
    const [keyFile, caFile] = [join(directory, 'key.pem'), join(directory, 'ca.pem')];
    const subject = ['-subj', '/CN=s3 of a test', '-addext', 'subjectAltName=IP:127.0.0.1', '-days', '1'];
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', keyFile];
    await execa('openssl', ['req', '-x509', ...key, ...subject, '-out', caFile]);
    const tls = { key: await readFile(keyFile, 'utf8'), cert: await readFile(caFile, 'utf8') };
    await using server = await WeakS3.start({ tls });
    const trusting = await openTestBackend(server, { caFile });
    t.equal(await trusting.create('keys/a', [Buffer.from('x')]), 'created');
    t.equal(String(await trusting.read('keys/a')), 'x');
    const seen = server.requests.length;
    const doubting = await openTestBackend(server);
    const refused = { code: 'STORAGE_UNREACHABLE', hint: /set caFile/, retryable: false };
    await t.rejects(doubting.read('keys/a'), refused);
    t.equal(server.requests.length, seen, 'nothing is sent to it');
  },
);
