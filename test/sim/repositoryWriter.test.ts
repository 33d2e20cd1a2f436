import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import t from 'tap';
import { listAll } from '../../storage/backends/backend.ts';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { deleteBackup, listBackups } from '../../storage/repository/backups.ts';
import { collect } from '../../storage/repository/collectionFixture.ts';
import { killedVolume } from './repositoryWriter.ts';
import { Repository } from '../../storage/repository/repository.ts';
import {
  initTestRepository,
  readVolume,
  testSecret,
  testTime,
} from '../../storage/repository/repositoryFixture.ts';
import { verifyRepository } from '../../storage/repository/verifyRepository.ts';

const rounds = 10;

void t.test(
  'a writer and collector that is killed loses nothing that it was told, and leaves a repository that goes on',
  async (t) => {
    const root = t.testdir();
    await initTestRepository(new FileBackend(root), 128 * 1024);
    const told = new Map<string, number>();
    for (let round = 0; round < rounds; round++) {
      const child = spawn(
        process.execPath,
        [join(import.meta.dirname, 'repositoryWriter.ts'), root, String(round * 1000)],
        {
          stdio: ['ignore', 'pipe', 'inherit'],
        },
      );
      let said = '';
      let doomed = false;
      child.stdout.on('data', (data: Buffer) => {
        said += data.toString();
        // At first between two backups, then while it deletes and collects.
        if (doomed || said.split('\n').length < (round < 4 ? 3 : 4)) return;
        doomed = true;
        // The delay differs in each round, and so does the call it meets.
        setTimeout(() => child.kill('SIGKILL'), (round < 4 ? round : round - 4) * 3);
      });
      await once(child, 'close');
      const lines = said.split('\n').slice(0, -1);
      t.ok(lines.length >= 2, 'backups were acknowledged');
      for (const line of lines) {
        const [first = '', second = ''] = line.split(' ');
        if (first === 'deleting') told.delete(second);
        else told.set(first, Number(second));
      }
      const repository = await Repository.open(new FileBackend(root), testSecret);
      const listed = new Map((await listBackups(repository.context)).map((backup) => [backup.id, backup]));
      for (const [id, seed] of told) {
        const manifest = listed.get(id)?.manifest ?? null;
        if (manifest === null) t.fail(`${id} was acknowledged, and is not there`);
        else t.ok((await readVolume(repository, manifest)).equals(killedVolume(seed)), id);
      }
      // At most one more per kill: committed and not told, or not deleted yet.
      t.ok(listed.size <= told.size + round + 1);
      const report = await verifyRepository(repository.context, await repository.index(), { data: true });
      t.same(
        report.backups.filter(({ problems }) => problems.length > 0),
        [],
      );
      t.same(report.damagedPacks, []);
    }
    const repository = await Repository.open(new FileBackend(root), testSecret);
    for (let round = 0; round < 2; round++) await collect(repository);
    for (const { id } of await listBackups(repository.context))
      await deleteBackup(repository.context, id, testTime);
    await collect(repository);
    t.same(
      await listAll(new FileBackend(root), 'packs/'),
      [],
      'nothing is left that a collection does not find',
    );
  },
);
