import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import t from 'tap';

import { readVerification, writeVerification } from './verifications.ts';

const seen = { ok: true, start: 'boot', evidence: 'agent', detail: 'it answers', durationMs: 7 } as const;

void t.test('of several verifications the last is told; what cannot be read is none', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-verified-'));
  t.teardown(() => rm(directory, { recursive: true }));
  t.equal(await readVerification(directory), null);
  const picture = join(directory, 'screen.ppm');
  await writeFile(picture, 'P6');
  const first = await writeVerification(directory, { at: '2026-11-20T10:00:00.000Z', ...seen }, picture);
  t.equal(first.picture, 'verified-20261120T100000.000Z.ppm');
  t.equal(await readFile(join(directory, first.picture ?? ''), 'utf8'), 'P6');
  const last = await writeVerification(
    directory,
    { at: '2026-11-21T10:00:00.000Z', ...seen, ok: false },
    null,
  );
  t.same(await readVerification(directory), last);
  t.same((await readdir(directory)).toSorted(), [
    'screen.ppm',
    'verified-20261120T100000.000Z.json',
    'verified-20261120T100000.000Z.ppm',
    'verified-20261121T100000.000Z.json',
  ]);
  await writeFile(join(directory, 'verified-20261122T100000.000Z.json'), '{"ok":"perhaps"}');
  t.equal(await readVerification(directory), null, 'not an older one that says something else');
  t.equal(await readVerification(join(directory, 'nowhere')), null);
});
