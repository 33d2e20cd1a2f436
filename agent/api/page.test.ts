import t from 'tap';
import { pageOf } from './page.ts';

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
