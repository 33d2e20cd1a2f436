import { chmod, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { execa } from 'execa';
import t from 'tap';

const repository = path.resolve(import.meta.dirname, '../..');

void t.test('the demo tells the main job to its end, and leaves nothing behind', async (t) => {
  const room = await mkdtemp(path.join(tmpdir(), 'stillpoint-demo-'));
  t.teardown(() => rm(room, { recursive: true }));
  await chmod(room, 0o755);
  const { exitCode, all } = await execa('scripts/with-node', ['node', 'scripts/demo.ts'], {
    cwd: repository,
    env: { STILLPOINT_LAB_ROOT: room },
    reject: false,
    all: true,
    timeout: 600_000,
  });
  t.equal(exitCode, 0, all);
  t.notMatch(all, '✘');
  t.match(all, /Back it up while it writes[^]*restore/i);
  t.same(await readdir(room), []);
});
