import { execa } from 'execa';
import t from 'tap';
import { manualPages } from './manual.ts';
import { verbs } from './verbs.ts';

const pages = manualPages('2026-11-22');

void t.test('every verb has a page, which names all of its options', (t) => {
  t.equal(pages.length, verbs.length + 1);
  for (const verb of verbs) {
    const page = pages.find(({ name }) => name === `stillpoint-${verb.name.replaceAll(' ', '-')}`);
    for (const { flags } of verb.options)
      t.ok(page?.text.includes(flags.replaceAll('-', String.raw`\-`)), `${verb.name} ${flags}`);
  }
  t.end();
});

void t.test('no line of text is taken for a request', (t) => {
  const requests = /^\.(TH|SH|B|I|PP|TP|nf|fi|nh)\b/;
  for (const { name, text } of pages)
    for (const line of text.split('\n')) if (/^[.']/.test(line)) t.match(line, requests, name);
  t.end();
});

void t.test(
  'the formatter of manuals has nothing to complain of, and shows options as they are typed',
  async (t) => {
    for (const { name, text } of pages) {
      const formatted = await execa('groff', ['-man', '-Tutf8', '-k', '-ww', '-P-c', '-P-b', '-P-u'], {
        input: text,
        timeout: 30_000,
      });
      t.equal(formatted.stderr, '', name);
      if (name === 'stillpoint-backup') t.match(formatted.stdout, '-x, --exclude <machine>');
    }
  },
);
