import { createHmac, randomBytes } from 'node:crypto';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { alerts, type WebhookConfig } from '../../config/observability.ts';
import { keepSecret } from '../../test/secrets.ts';
import { signatureOf, Webhook } from './webhook.ts';
import { Receiver } from './webhookFixture.ts';

const delivery = { id: 'a1', body: JSON.stringify({ id: 'a1', status: 'firing', event: 'job-parked' }) };
const how = () => ({ nowMs: 1_790_000_000_500, signal: new AbortController().signal });

function webhook(config: Partial<WebhookConfig> & { readonly url: string }): Webhook {
  const [only] = alerts.parse({ webhooks: [config] }).webhooks;
  if (only === undefined) throw new Error('no webhook');
  return new Webhook(only);
}

async function directoryFor(test: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-webhook-'));
  test.after(() => rm(directory, { recursive: true }));
  return directory;
}

void t.test('an alert is a POST of JSON, signed where there is a secret', async (t) => {
  await using receiver = await Receiver.start();
  const secretFile = join(await directoryFor(t), 'secret');
  const secret = keepSecret('webhook secret', randomBytes(16).toString('hex'));
  await writeFile(secretFile, `${secret}\n`, { mode: 0o600 });
  await webhook({ url: receiver.url }).send(delivery, how());
  await webhook({ url: receiver.url, secretFile }).send(delivery, how());
  const [plain, signed] = receiver.received;
  t.match(plain?.headers, { 'content-type': 'application/json', 'stillpoint-alert': 'a1' });
  t.equal(plain?.headers['stillpoint-signature'], undefined);
  const digest = createHmac('sha256', secret).update(`1790000000.${delivery.body}`).digest('hex');
  t.equal(signed?.headers['stillpoint-signature'], `t=1790000000,v1=${digest}`);
  t.equal(signed?.text, delivery.body, 'as it was sent');
  t.not(signatureOf('{}', Buffer.from(secret), 0), signatureOf('{}', Buffer.from('another'), 0));
});

void t.test('a secret that others can read is not used, and is not told', async (t) => {
  await using receiver = await Receiver.start();
  const secretFile = join(await directoryFor(t), 'secret');
  await writeFile(secretFile, 'hush-hush-hush', { mode: 0o600 });
  await chmod(secretFile, 0o644);
  const sent = webhook({ url: receiver.url, secretFile }).send(delivery, how());
  await t.rejects(sent, { code: 'ALERT_FILE_UNUSABLE', message: /others may read it/, hint: /chmod 600/ });
  t.equal(receiver.received.length, 0, 'and nothing goes out without a signature');
});

void t.test('whatever is not 2xx counts as not taken, and a redirect is not followed', async (t) => {
  await using receiver = await Receiver.start();
  await using elsewhere = await Receiver.start();
  receiver.headers['location'] = elsewhere.url;
  for (const status of [200, 202, 302, 307, 404, 500]) {
    receiver.status = status;
    const sent = webhook({ url: receiver.url }).send(delivery, how());
    if (status < 300) await t.resolves(sent, String(status));
    else await t.rejects(sent, { code: 'ALERT_NOT_DELIVERED', message: new RegExp(`answered ${status}`) });
  }
  t.equal(elsewhere.received.length, 0);
});

void t.test('its address is told nowhere, only its host', async (t) => {
  const receiver = await Receiver.start();
  const hook = webhook({ url: receiver.url });
  await receiver[Symbol.asyncDispose]();
  const error = await hook.send(delivery, how()).catch((thrown: unknown) => thrown);
  t.match(error, { code: 'ALERT_NOT_DELIVERED', message: /127\.0\.0\.1:\d+/ });
  t.notMatch(JSON.stringify([error, String(error), hook.id, hook.name]), /t0ken/);
});

void t.test('who does not answer is left when the service ends', async (t) => {
  await using receiver = await Receiver.start();
  receiver.status = null;
  const stop = new AbortController();
  const sent = webhook({ url: receiver.url }).send(delivery, { nowMs: 0, signal: stop.signal });
  await receiver.until(1);
  const reason = new Error('the service ends');
  stop.abort(reason);
  await t.rejects(sent, reason);
});

void t.test(
  'a certificate that nobody vouches for is refused, and one that caFile vouches for is not',
  async (t) => {
    const directory = await directoryFor(t);
    const [keyFile, caFile] = [join(directory, 'key.pem'), join(directory, 'cert.pem')];
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', keyFile];
    const subject = ['-subj', '/CN=receiver', '-addext', 'subjectAltName=IP:127.0.0.1'];
    await execa('openssl', ['req', '-x509', ...key, ...subject, '-out', caFile]);
    const read = (file: string): Promise<string> => readFile(file, 'utf8');
    await using receiver = await Receiver.start({ key: await read(keyFile), cert: await read(caFile) });
    await t.rejects(webhook({ url: receiver.url }).send(delivery, how()), { code: 'ALERT_NOT_DELIVERED' });
    process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0';
    t.teardown(() => void delete process.env['NODE_TLS_REJECT_UNAUTHORIZED']);
    await t.rejects(
      webhook({ url: receiver.url }).send(delivery, how()),
      { code: 'ALERT_NOT_DELIVERED' },
      'whatever the environment says',
    );
    t.equal(receiver.received.length, 0);
    await webhook({ url: receiver.url, caFile }).send(delivery, how());
    t.equal(receiver.received.length, 1);
  },
);
