import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { readDataVerification, writeDataVerification } from './dataVerification.ts';

void t.test('the last reading counts; what cannot be read is none', async (t) => {
  const directory = t.testdir();
  t.equal(await readDataVerification(directory), null);
  await writeDataVerification(directory, { at: '2026-11-20T10:00:00.000Z', ok: true });
  const last = { at: '2026-11-21T10:00:00.000Z', ok: false };
  await writeDataVerification(directory, last);
  t.same(await readDataVerification(directory), last);
  t.same(await readdir(directory), ['data-verified.json']);
  await writeFile(join(directory, 'data-verified.json'), '{"at":"yesterday"}');
  t.equal(await readDataVerification(directory), null);
  t.equal(await readDataVerification(join(directory, 'nowhere')), null);
});
