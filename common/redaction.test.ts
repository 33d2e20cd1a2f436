import t from 'tap';
import { withoutSecrets } from './redaction.ts';

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
