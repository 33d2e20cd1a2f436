import { chmod, chown, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { parseS3Credentials, readS3Credentials } from './s3Credentials.ts';

const lines = 'AWS_ACCESS_KEY_ID=KEYID\nAWS_SECRET_ACCESS_KEY=se=cr/et+\n';

void t.test('two lines are credentials, and three that end', (t) => {
  const read = (content: string): unknown => parseS3Credentials(content, 'file');
  t.match(read(lines), { accessKeyId: 'KEYID', secretAccessKey: 'se=cr/et+' });
  t.match(read(`# of the vault\n\n  ${lines}AWS_SESSION_TOKEN=to==\r\n`), { sessionToken: 'to==' });
  t.end();
});

void t.test('anything else is refused by the number of its line, never by what stands there', (t) => {
  const cases = {
    '': /AWS_ACCESS_KEY_ID is missing/,
    'AWS_ACCESS_KEY_ID=a': /AWS_SECRET_ACCESS_KEY is missing/,
    'AWS_ACCESS_KEY_ID=': /line 1 has no usable value/,
    'AWS_SECRET_ACCESS_KEY=hidden secret': /line 1 has no usable value/,
    [`${lines}AWS_SECRET_ACCESS_KEY=hidden`]: /line 3 sets AWS_SECRET_ACCESS_KEY once more/,
    [`${lines}hidden`]: /line 3 sets none of/,
    [`${lines}=hidden`]: /line 3 sets none of/,
    [`${lines}AWS_SECRET=hidden`]: /line 3 sets none of/,
    [`${lines}export AWS_SESSION_TOKEN=hidden`]: /line 3 sets none of/,
    'AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=hid\u0000den': /line 2 has no usable value/,
  };
  for (const [content, message] of Object.entries(cases)) {
    const refused = { code: 'STORAGE_SETTINGS_INVALID', message, hint: /AWS_ACCESS_KEY_ID=/ };
    t.throws(() => parseS3Credentials(content, '/etc/keys'), refused);
    t.throws(() => parseS3Credentials(content, '/etc/keys'), { message: /^(?!.*hid)/ });
  }
  t.end();
});

void t.test('a file that others may read, or own, or that is none, is not read', async (t) => {
  const directory = t.testdir({ keys: lines });
  const path = join(directory, 'keys');
  const code = 'STORAGE_SETTINGS_INVALID';
  for (const mode of [0o644, 0o640, 0o604, 0o620]) {
    await chmod(path, mode);
    await t.rejects(readS3Credentials(path), { code, message: /others may read it/, hint: /chmod 600/ });
  }
  await chmod(path, 0o600);
  t.match(await readS3Credentials(path), { accessKeyId: 'KEYID' });
  await t.rejects(readS3Credentials(join(directory, 'none')), {
    code,
    message: /cannot be read/,
    hint: /ls -l/,
  });
  await t.rejects(readS3Credentials(directory), { code, message: /no file/, hint: /ls -l/ });
  await execa('mkfifo', ['-m', '600', join(directory, 'pipe')]);
  await t.rejects(readS3Credentials(join(directory, 'pipe')), { code, message: /no file/, hint: /ls -l/ });
  await writeFile(path, lines.repeat(2000));
  await t.rejects(readS3Credentials(path), { code, message: /bytes long/, hint: /ls -l/ });
  if (process.geteuid?.() !== 0) return;
  await writeFile(path, lines);
  await chown(path, 1000, 1000);
  await t.rejects(readS3Credentials(path), { code, message: /somebody else/, hint: /chown/ });
});
