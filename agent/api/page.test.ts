import t from 'tap';
import { fitting, pageOf } from './page.ts';

const key = (item: string): string => item;

function allPages(items: () => readonly string[], pageSize: number, between: () => void): readonly string[] {
  const seen: string[] = [];
  let pageToken = '';
  do {
    const page = pageOf(items(), key, { pageSize, pageToken }, 100);
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
  t.equal(pageOf([], key, { pageSize: 10, pageToken: '' }, 100).nextPageToken, '');
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
  for (const pageToken of ['!', 'a', 'ä', 'YQ=='])
    t.throws(() => pageOf(['a'], key, { pageSize: 1, pageToken }, 1), { code: 'REQUEST_INVALID' }, pageToken);
  const many = Array.from({ length: 2000 }, (_, index) => String(index).padStart(5, '0'));
  t.equal(pageOf(many, key, { pageSize: 4_000_000_000, pageToken: '' }, 1).items.length, 1000);
});

void t.test('a page ends before its messages are too many bytes, but not before the first', async (t) => {
  const mebibyte = 1024 * 1024;
  const encode = (bytes: number) => ({ finish: () => new Uint8Array(bytes) });
  const pagesOf = (sizes: readonly number[], pageSize: number): readonly number[][] => {
    const items = sizes.map((_, index) => String(index).padStart(3, '0'));
    const pages: number[][] = [];
    let pageToken = '';
    do {
      const page = pageOf(items, key, { pageSize, pageToken }, 100);
      const messages = page.items.map((item) => sizes[Number(item)] ?? 0);
      const told = fitting(page, key, messages, { encode });
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
