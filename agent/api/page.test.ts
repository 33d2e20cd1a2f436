import t from 'tap';
import { Pages } from './page.ts';

const list = { of: ['words', ''], keyOf: (item: string): string => item };

function allPages(items: () => readonly string[], pageSize: number, between: () => void): readonly string[] {
  const seen: string[] = [];
  let pageToken = '';
  do {
    const page = new Pages({ pageSize, pageToken }, { ...list, defaultSize: 100 }).of(items());
    seen.push(...page.items);
    pageToken = page.nextPageToken;
    between();
  } while (pageToken !== '');
  return seen;
}

void t.test('pages together are the whole list, and the last one says so', async (t) => {
  const items = Array.from({ length: 25 }, (_, index) => String(index).padStart(3, '0'));
  for (const size of [1, 7, 25, 26, 0])
    t.same(
      allPages(
        () => items,
        size,
        () => undefined,
      ),
      items,
      `${size}`,
    );
  const none = new Pages({ pageSize: 10, pageToken: '' }, { ...list, defaultSize: 100 }).of([]);
  t.equal(none.nextPageToken, '');
});

void t.test('what comes and goes between two pages repeats and hides no other', async (t) => {
  let items = ['b', 'd', 'f', 'h'];
  const seen = allPages(
    () => items,
    2,
    () => (items = ['a', 'f', 'g', 'h']),
  );
  t.same(seen, ['b', 'd', 'f', 'g', 'h']);
});

void t.test('a token that is none of ours is refused, and no page is larger than may be', async (t) => {
  const first = new Pages({ pageSize: 1, pageToken: '' }, { ...list, defaultSize: 1 });
  const ours = first.of(['a', 'b']).nextPageToken;
  const wrong = ['!', 'a', 'ä', 'YQ==', 'YWFhYWFhYWFhYWFh', ours.slice(0, -1), `${ours}=`, ` ${ours}`];
  for (const pageToken of wrong)
    t.throws(
      () => new Pages({ pageSize: 1, pageToken }, { ...list, defaultSize: 1 }),
      { code: 'REQUEST_INVALID' },
      pageToken,
    );
  const many = Array.from({ length: 2000 }, (_, index) => String(index).padStart(5, '0'));
  const huge = new Pages({ pageSize: 4_000_000_000, pageToken: '' }, { ...list, defaultSize: 1 });
  t.equal(huge.of(many).items.length, 1000);
});

void t.test('a token of another list, or of the same with other filters, is refused', async (t) => {
  const pageToken = new Pages({ pageSize: 1, pageToken: '' }, { ...list, defaultSize: 1 }).of([
    'a',
    'b',
  ]).nextPageToken;
  const of = (...names: readonly (string | boolean)[]) =>
    new Pages({ pageSize: 1, pageToken }, { ...list, of: names, defaultSize: 1 });
  t.equal(of('words', '').after, 'a');
  for (const names of [['letters', ''], ['words'], ['words', 'x'], ['words', false], ['words', '', '']])
    t.throws(() => of(...names), { code: 'REQUEST_INVALID' }, JSON.stringify(names));
});

void t.test('a page ends before its messages are too many bytes, but not before the first', async (t) => {
  const mebibyte = 1024 * 1024;
  const encode = (bytes: number) => ({ finish: () => new Uint8Array(bytes) });
  const pagesOf = (sizes: readonly number[], pageSize: number): readonly number[][] => {
    const items = sizes.map((_, index) => String(index).padStart(3, '0'));
    const pages: number[][] = [];
    let pageToken = '';
    do {
      const asked = new Pages({ pageSize, pageToken }, { ...list, defaultSize: 100 });
      const page = asked.of(items);
      const messages = page.items.map((item) => sizes[Number(item)] ?? 0);
      const told = asked.fitting(page, messages, { encode });
      pages.push(told.messages);
      pageToken = told.nextPageToken;
    } while (pageToken !== '' && pages.length <= sizes.length);
    return pages;
  };
  const [one, two, four] = [mebibyte, 2 * mebibyte, 4 * mebibyte];
  t.same(pagesOf([one, one, one, one], 0), [[one, one, one], [one]]);
  t.same(pagesOf([one, one, one], 0), [[one, one, one]], 'what just fits is one page');
  t.same(pagesOf([one, one, one, one, one], 2), [[one, one], [one, one], [one]], 'or fewer, if asked for');
  t.same(pagesOf([two, two, 1, four, 1], 0), [[two], [two, 1], [four], [1]], 'what fits nowhere is alone');
  t.same(pagesOf([], 0), [[]]);
});
