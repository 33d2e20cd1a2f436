import { join } from 'node:path';
import t from 'tap';
import { WeakS3 } from '../../test/sim/weakS3.ts';
import { S3Backend } from './s3Backend.ts';
import { openTestBackend, testCredentials } from './s3Fixture.ts';

void t.test('settings that no server could be asked with are refused by name', async (t) => {
  const good = { endpoint: 'https://s3.test', bucket: 'vault', credentials: testCredentials };
  await S3Backend.open(good);
  await S3Backend.open({ ...good, endpoint: 'http://[::1]:8000/', prefix: 'Of_us/2.a', region: 'eu-west-1' });
  const plain = t.testdir({ 'ca.pem': 'no certificate' });
  const cases = [
    { endpoint: 's3.test' },
    { endpoint: 'ftp://s3.test' },
    { endpoint: 'https://s3.test/vault' },
    { endpoint: 'https://s3.test?x' },
    { endpoint: `https://me:${testCredentials.secretAccessKey}@s3.test` },
    { bucket: '' },
    { bucket: 'a/b' },
    { bucket: '..' },
    { region: 'a b' },
    { prefix: '' },
    { prefix: '/a' },
    { prefix: 'a/' },
    { prefix: 'a//b' },
    { prefix: 'a/../b' },
    { prefix: '.a' },
    { addressing: 'virtualHost', endpoint: 'https://127.0.0.1' },
    { addressing: 'virtualHost', endpoint: 'https://[::1]' },
    { caFile: join(plain, 'missing.pem') },
    { caFile: join(plain, 'ca.pem') },
  ] as const;
  for (const change of cases) {
    const [setting = ''] = Object.keys(change);
    const refused = { code: 'STORAGE_SETTINGS_INVALID', message: new RegExp(`setting ${setting} `) };
    const opened = S3Backend.open({ ...good, ...change });
    await t.rejects(opened, refused, JSON.stringify(change));
    await opened.catch((error: unknown) => t.notMatch(String(error), /hidden\+secret/));
  }
});

void t.test('the environment and the files of other programs change nothing', async (t) => {
  await using server = await WeakS3.start();
  const strange = {
    AWS_PROFILE: 'not-there',
    AWS_REGION: 'mars-north-1',
    AWS_ENDPOINT_URL: 'http://127.0.0.1:1',
    AWS_ACCESS_KEY_ID: 'OTHER',
    AWS_SECRET_ACCESS_KEY: 'other',
    AWS_SESSION_TOKEN: 'other',
    AWS_USE_FIPS_ENDPOINT: 'true',
    AWS_USE_DUALSTACK_ENDPOINT: 'true',
    AWS_CONFIG_FILE: '/dev/null',
    AWS_MAX_ATTEMPTS: '7',
  };
  const before = { ...process.env };
  t.teardown(() => {
    for (const name of Object.keys(strange)) delete process.env[name];
    Object.assign(process.env, before);
  });
  Object.assign(process.env, strange);
  const backend = await openTestBackend(server);
  t.equal(await backend.read('keys/a'), null);
  t.match(server.requests[0]?.headers['authorization'], /Credential=KEYID\/\d+\/us-east-1\/s3/);
  t.equal(server.requests[0]?.headers['x-amz-security-token'], undefined);
});

void t.test('connections come from the address that is told', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server, { localAddress: '127.0.0.2' });
  t.equal(await backend.read('keys/a'), null);
  t.match(server.requests, [{ from: '127.0.0.2' }]);
});
