import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import t from 'tap';

const root = resolve(import.meta.dirname, '..');

/** Rows of the table, without its head. */
async function rules(): Promise<readonly (readonly string[])[]> {
  const page = await readFile(join(root, 'docs/PEERS.md'), 'utf8');
  return page
    .split('\n')
    .filter((line) => line.startsWith('| '))
    .slice(1)
    .map((line) =>
      line
        .slice(1, -1)
        .split(' | ')
        .map((cell) => cell.trim()),
    );
}

void t.test('each rule that others taught us is held by tests that exist', async (t) => {
  const rows = await rules();
  t.ok(rows.length >= 20, `${rows.length} rules`);
  for (const [seen = '', , tests = ''] of rows) {
    for (const test of tests.split('<br>')) {
      const [, file = '', name = ''] = /^`([^`]+)`: (.+)$/.exec(test) ?? [];
      const source = await readFile(join(root, file), 'utf8').catch(() => '');
      t.ok(name !== '' && source.includes(name), `${seen}: ${test}`);
    }
  }
});
