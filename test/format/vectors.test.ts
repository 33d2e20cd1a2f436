import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { buildVectors } from './vectors.ts';

void t.test('what is written is what the test vectors of the format say', async (t) => {
  const stored: unknown = JSON.parse(
    await readFile(join(import.meta.dirname, '..', 'golden', 'vectors.json'), 'utf8'),
  );
  t.same(await buildVectors(), stored, 'a difference is another format: it needs another version');
});
