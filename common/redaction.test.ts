import t from 'tap';
import { withoutSecrets, withoutSuspects } from './redaction.ts';

void t.test('a secret that is known by its form is taken out of any text, and nothing else is', (t) => {
  const cases: readonly (readonly [string, string])[] = [
    [`<graphics type='vnc' passwd='hush'/>`, `<graphics type='vnc' passwd='[secret]'/>`],
    [
      String.raw`{"msg":"bad <graphics passwd=\"hush\"/>"}`,
      String.raw`{"msg":"bad <graphics passwd=\"[secret]\"/>"}`,
    ],
    ['AWS_SECRET_ACCESS_KEY=hush/+1 and', 'AWS_SECRET_ACCESS_KEY=[secret] and'],
    ['https://me:hush@example.net/x', 'https://[secret]@example.net/x'],
    [`key ${'AB12-'.repeat(13)}AB12.`, 'key [secret].'],
    ['https://example.net:9000/a@b', 'https://example.net:9000/a@b'],
    ['qemu+unix:///system?socket=/run/x', 'qemu+unix:///system?socket=/run/x'],
    ['job 01a1fa1b-a048-7000-8000-0123456789ab', 'job 01a1fa1b-a048-7000-8000-0123456789ab'],
    ['passwd: 3 entries', 'passwd: 3 entries'],
  ];
  for (const [text, expected] of cases) t.equal(withoutSecrets(text), expected);
  t.end();
});

void t.test('what looks like a secret is taken out of the text of others, and the rest stays', (t) => {
  const cases = {
    'password=hunter2 user=me': 'password=[secret] user=me',
    'DB_PASSWORD: "two words" done': 'DB_PASSWORD: [secret] done',
    '{"apiKey": "abc", "name": "x"}': '{"apiKey": [secret], "name": "x"}',
    'AWS_SECRET_ACCESS_KEY=a/b+c': 'AWS_SECRET_ACCESS_KEY=[secret]',
    'GET https://me:hidden@host/path': 'GET https://[secret]@host/path',
    'GET redis://:hidden@host/path': 'GET redis://[secret]@host/path',
    'Authorization: Bearer abc.def-1': 'Authorization: Bearer [secret]',
    'a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb': 'a\n[secret]\nb',
    '-----BEGIN PRIVATE KEY-----\ncut off': '[secret]',
    'flushed 3 tables in 2 s': 'flushed 3 tables in 2 s',
  };
  for (const [text, redacted] of Object.entries(cases)) t.equal(withoutSuspects(text), redacted);
  t.end();
});
