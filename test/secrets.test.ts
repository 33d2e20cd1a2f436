import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { createLogger } from '../common/log.ts';
import type { BackgroundRun } from './lab/libvirtd.ts';
import { SecretWatch } from './lab/secretWatch.ts';
import { keepSecret, noteSaid } from './secrets.ts';
import { ScheduledSite } from './sim/scheduledSite.ts';
import { removeSharedImages } from './sim/site.ts';

t.teardown(removeSharedImages);

const shown = { name: 'SecretShown', message: /is shown by/ };
const newSecret = (): string => randomBytes(16).toString('hex');

void t.test('a secret that is logged on purpose fails the test, wherever it stands in the line', (t) => {
  const destination = { write: (line: string) => noteSaid('a log', line) };
  const log = createLogger({ level: 'trace', destination });
  const secret = keepSecret('LUKS secret', newSecret());
  t.throws(() => log.info(`it is ${secret}`), shown);
  t.throws(() => log.info({ deep: { deeper: { deepest: secret } } }), shown);
  t.throws(() => log.error({ err: new Error(`no: ${secret}`) }), shown);
  t.throws(() => log.info(Buffer.from(secret).toString('base64')), shown);
  t.doesNotThrow(() => log.info({ passphrase: secret }, 'keys that are known for it are taken out'));
  t.end();
});

void t.test('a secret that becomes known later was not to be shown before either', (t) => {
  const secret = newSecret();
  noteSaid('a command', `here: ${secret}`);
  t.throws(() => keepSecret('repository key', secret), shown);
  t.end();
});

void t.test('a recovery key may be shown by who makes it, and by nobody else', (t) => {
  const key = keepSecret('recovery key', newSecret());
  t.doesNotThrow(() => noteSaid('storage init', key, { shows: 'recovery key' }));
  t.throws(() => noteSaid('storage show', key), shown);
  t.throws(() => noteSaid('storage init', key, { shows: 'LUKS secret' }), shown);
  t.end();
});

void t.test('what an agent of the laboratory prints is compared with what is in its key files', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-secrets-'));
  t.after(() => rm(directory, { recursive: true }));
  const keyFile = join(directory, 'key');
  const credentialsFile = join(directory, 'credentials');
  const key = newSecret() + newSecret();
  const s3Secret = newSecret();
  await writeFile(keyFile, `${key}\n`);
  await writeFile(credentialsFile, `AWS_ACCESS_KEY_ID=me\nAWS_SECRET_ACCESS_KEY=${s3Secret}\n`);
  const watch = new SecretWatch();
  watch.configure({ vault: { kind: 'repository', keyFile, credentialsFile } });
  const saying = (stdout: string, stderr: string): BackgroundRun => {
    const done = Promise.resolve({ exitCode: 0, signal: undefined, stdout, stderr });
    return { pid: 1, output: () => ({ stdout, stderr }), kill: () => undefined, kill9: () => done, done };
  };
  await t.rejects(watch.over(saying(key, ''), ['list']).done, shown);
  await t.rejects(watch.over(saying('', `x${s3Secret}`), ['list']).done, shown);
  t.match(await watch.over(saying('fine', 'fine'), ['list']).done, { exitCode: 0 });
});

void t.test('a simulated service keeps its secrets while all goes well and while it does not', async (t) => {
  await using host = await ScheduledSite.create(
    { schedule: { cron: '0 * * * *', retries: { count: 1 } } },
    '2026-11-22T00:30',
    { storages: ['vault'] },
  );
  await host.start();
  await host.until('2026-11-22T01:30');
  t.equal(host.lines(/^scheduled backup succeeded$/).length, 1);
  if (host.site.vault !== undefined) host.site.vault.fault = 'away';
  await host.until('2026-11-22T02:30');
  t.ok(host.lines(/^scheduled backup failed/).length > 0);
});
