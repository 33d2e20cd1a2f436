import { chmod, readdir, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { FileBackend } from '../backends/fileBackend.ts';
import { listBackups } from './backups.ts';
import { collect } from './collectionFixture.ts';
import { prefixes } from './names.ts';
import { repair } from './repairFixture.ts';
import { Repository } from './repository.ts';
import { backUp, initTestRepository, readVolume, someVolume, testSecret } from './repositoryFixture.ts';
import { verifyRepository } from './verifyRepository.ts';

/** More than Node reads at once, and no space taken. */
const longBytes = 3 * 1024 ** 3;

async function makeLong(directory: string): Promise<void> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const [first] = entries.filter((entry) => entry.isFile());
  const path = join(first?.parentPath ?? '', first?.name ?? '');
  await chmod(path, 0o600);
  await truncate(path, longBytes);
}

for (const kind of ['indexes', 'packs', 'manifests'] as const)
  void t.test(
    `one of the ${kind} that somebody has made gibibytes long is damage like any other`,
    async (t) => {
      const root = t.testdir();
      await new FileBackend(root).prepare();
      const open = async (): Promise<Repository> => Repository.open(new FileBackend(root), testSecret);
      await initTestRepository(new FileBackend(root), 1500);
      const [lost, kept] = [someVolume(1), someVolume(2)];
      await backUp(await open(), lost);
      const directory = join(root, prefixes[kind]);
      await makeLong(directory);
      const { manifest } = await backUp(await open(), kept);
      t.equal((await listBackups((await open()).context)).length, 2);
      const { context } = await open();
      const index = await (await open()).index();
      const report = await verifyRepository(context, index, { data: true });
      // An index is believed in nothing, and of a pack what is asked for can be read: nothing is lost yet.
      t.equal(report.ok, kind !== 'manifests');
      t.equal(report.damagedPacks.length, kind === 'packs' ? 1 : 0);
      t.not((await repair(await open())).steps.length, 0);
      await backUp(await open(), lost);
      await repair(await open());
      await collect(await open());
      t.ok((await readVolume(await open(), manifest)).equals(kept));
      t.same((await repair(await open())).steps, []);
    },
  );
