import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { currentStateFile, stowState } from './stateFile.ts';

const complete = `LibvirtQemudSave${'x'.repeat(5000)}`;

async function pathsIn(t: Test): Promise<{ readonly stateFile: string; readonly stowedStateFile: string }> {
  const directory = t.testdir({ ram: {}, disk: {} });
  return {
    stateFile: join(directory, 'ram', 'vda.state'),
    stowedStateFile: join(directory, 'disk', 'vda.state'),
  };
}

void t.test(
  'a memory state leaves the RAM disk whole, for root alone, and is found where it is',
  async (t) => {
    const paths = await pathsIn(t);
    await writeFile(paths.stateFile, complete);
    t.equal(await currentStateFile(paths), paths.stateFile);
    await stowState(paths, {});
    t.equal(await currentStateFile(paths), paths.stowedStateFile);
    t.equal(await readFile(paths.stowedStateFile, 'utf8'), complete);
    t.equal((await stat(paths.stowedStateFile)).mode & 0o777, 0o600);
    await t.rejects(stat(paths.stateFile), { code: 'ENOENT' }, 'the RAM disk has its room back');
    await stowState(paths, {});
    t.equal(await readFile(paths.stowedStateFile, 'utf8'), complete, 'a second time it stays as it is');
  },
);

void t.test('what a crash left of a move is taken up', async (t) => {
  const paths = await pathsIn(t);
  await writeFile(paths.stateFile, complete);
  await writeFile(`${paths.stowedStateFile}.copying`, 'half');
  t.equal(await currentStateFile(paths), paths.stateFile, 'half a copy counts for nothing');
  await stowState(paths, {});
  // Killed between the rename and the removal.
  await writeFile(paths.stateFile, complete);
  await stowState(paths, {});
  t.same(await readdir(join(paths.stowedStateFile, '..')), ['vda.state']);
  t.equal(await currentStateFile(paths), paths.stowedStateFile);
});

void t.test('a move that fails leaves the state on the RAM disk and nothing half on the disk', async (t) => {
  const paths = await pathsIn(t);
  await writeFile(paths.stateFile, complete);
  await rm(join(paths.stowedStateFile, '..'), { recursive: true });
  await t.rejects(stowState(paths, {}), { code: 'ENOENT' });
  t.equal(await currentStateFile(paths), paths.stateFile);
  await mkdir(join(paths.stowedStateFile, '..'));
  await t.rejects(stowState(paths, { signal: AbortSignal.abort(new Error('enough')) }), /enough/);
  t.same(await readdir(join(paths.stowedStateFile, '..')), []);
  t.equal(await readFile(paths.stateFile, 'utf8'), complete);
});

void t.test('a state that is not complete, or not to be moved, stays where it is', async (t) => {
  const paths = await pathsIn(t);
  await writeFile(paths.stateFile, `LibvirtQemudPart${'x'.repeat(100)}`);
  await stowState(paths, {});
  t.equal(await currentStateFile(paths), paths.stateFile);
  await writeFile(paths.stateFile, complete);
  await stowState({ ...paths, stowedStateFile: null }, {});
  t.equal(await currentStateFile({ ...paths, stowedStateFile: null }), paths.stateFile);
});
