import t from 'tap';
import { redactText } from './redactText.ts';

void t.test('what looks like a secret is taken out, and the rest stays', (t) => {
  const cases = {
    'password=hunter2 user=me': 'password=[secret] user=me',
    'DB_PASSWORD: "two words" done': 'DB_PASSWORD: [secret] done',
    '{"apiKey": "abc", "name": "x"}': '{"apiKey": [secret], "name": "x"}',
    'AWS_SECRET_ACCESS_KEY=a/b+c': 'AWS_SECRET_ACCESS_KEY=[secret]',
    'GET https://me:hidden@host/path': 'GET https://me:[secret]@host/path',
    'Authorization: Bearer abc.def-1': 'Authorization: Bearer [secret]',
    'a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb': 'a\n[secret]\nb',
    '-----BEGIN PRIVATE KEY-----\ncut off': '[secret]',
    'flushed 3 tables in 2 s': 'flushed 3 tables in 2 s',
  };
  for (const [text, redacted] of Object.entries(cases)) t.equal(redactText(text), redacted);
  t.end();
});
