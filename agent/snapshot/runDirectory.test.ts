import { mkdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { makeRunDirectory } from './runDirectory.ts';

void t.test(
  'everybody may pass to a directory that nobody but its user may enter, whatever the umask',
  async (t) => {
    const before = process.umask(0o077);
    t.teardown(() => process.umask(before));
    const root = t.testdir({});
    const modeOf = async (path: string): Promise<number> => (await stat(path)).mode & 0o777;
    await makeRunDirectory(join(root, 'made', 'job'));
    t.equal(await modeOf(join(root, 'made')), 0o711);
    t.equal(await modeOf(join(root, 'made', 'job')), 0o700);
    await mkdir(join(root, 'closed'), { mode: 0o700 });
    await makeRunDirectory(join(root, 'closed', 'job'));
    t.equal(await modeOf(join(root, 'closed')), 0o711, 'also one that was there, closed');
  },
);
