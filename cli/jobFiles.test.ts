import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { filesOfBackup } from './jobFiles.ts';

void t.test('a backup job names its files, whether they are there, and what it has stored', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-job-files-'));
  t.after(() => rm(directory, { recursive: true }));
  const image = join(directory, 'vda.qcow2');
  await writeFile(image, '');
  const files = await filesOfBackup({
    plan: {
      volumes: [{ target: 'vda', image, overlay: `${image}.overlay`, scratch: null }],
      stateFile: join(directory, 'm.state'),
      stowedStateFile: null,
      nvram: null,
    },
    retained: { local: { 'm-vda.qcow2.T': { sizeBytes: 7 } } },
  });
  t.same(
    files.map(({ role, target, storage, sizeBytes, present }) => [role, target, storage, sizeBytes, present]),
    [
      ['image', 'vda', null, null, true],
      ['overlay', 'vda', null, null, false],
      ['memory', null, null, null, false],
      ['stored', null, 'local', 7, null],
    ],
  );
});

void t.test('a backup job that has no plan yet has no files', async (t) => {
  t.same(await filesOfBackup({}), []);
});
