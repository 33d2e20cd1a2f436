import { randomBytes } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';
import t from 'tap';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import { FileBackend } from '../backends/fileBackend.ts';
import { deleteBackup, listBackups } from './backups.ts';
import { collect } from './collectionFixture.ts';
import { Repository } from './repository.ts';
import {
  backUp,
  initTestRepository,
  readVolume,
  testChunkBytes,
  testSecret,
  testTime,
} from './repositoryFixture.ts';
import { verifyRepository } from './verifyRepository.ts';

const shared = Array.from({ length: 6 }, () => randomBytes(testChunkBytes));

/** A volume of pieces that others have too, and one of its own. */
function volumeOf(writer: number, round: number): Buffer {
  const pieces = shared.filter((_, index) => (index + writer + round) % 3 !== 0);
  return Buffer.concat([...pieces, randomBytes(1000), Buffer.alloc(testChunkBytes)]);
}

void t.test('several hosts write, read, delete and collect at once, and disturb nobody', async (t) => {
  const root = t.testdir();
  const objects = new ObjectStore();
  const places = [() => new FileBackend(root), () => objects.client({ staleListing: 0.5 })];
  for (const open of places) {
    const isFiles = open() instanceof FileBackend;
    await initTestRepository(isFiles ? open() : objects.client(), 128 * 1024);
    const written = new Map<string, Buffer>();
    const state = { writing: 4, packsDeleted: 0 };
    const collectors = [0, 1].map(async () => {
      while (state.writing > 0) {
        // A listing that is old makes a collection unsafe, and is not what a store promises that is collected.
        const client = isFiles ? open() : objects.client();
        const onOpenSession = async () => setImmediate('wait' as const);
        const report = await collect(await Repository.open(client, testSecret), { onOpenSession });
        state.packsDeleted += report.packsDeleted;
      }
    });
    await Promise.all([
      ...collectors,
      ...[0, 1, 2, 3].map(async (writer) => {
        let previous: string | null = null;
        for (let round = 0; round < 4; round++) {
          const repository = await Repository.open(open(), testSecret);
          const volume = volumeOf(writer, round);
          const { manifest } = await backUp(repository, volume);
          written.set(manifest.id, volume);
          if (!(await readVolume(repository, manifest)).equals(volume))
            t.fail(`writer ${writer}, round ${round}`);
          if (previous !== null && writer % 2 === 0) {
            await deleteBackup(repository.context, previous, testTime);
            written.delete(previous);
          }
          previous = manifest.id;
        }
        state.writing--;
      }),
    ]);
    t.ok(state.packsDeleted > 0);
    const settled = await Repository.open(isFiles ? open() : objects.client(), testSecret);
    const listed = await listBackups(settled.context);
    t.same(listed.map(({ id }) => id).toSorted(), [...written.keys()].toSorted());
    for (const { id, manifest } of listed) {
      if (manifest === null) t.fail(`${id} cannot be read`);
      else t.ok((await readVolume(settled, manifest)).equals(written.get(id) ?? Buffer.alloc(0)), id);
    }
    t.ok((await verifyRepository(settled.context, await settled.index(), { data: true })).ok);
  }
});
