import { randomBytes, randomInt } from 'node:crypto';
import { mkdtemp, readdir, rm, statfs, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import t from 'tap';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { StorageError } from '../../storage/errors.ts';
import type { BackupManifest } from '../../storage/repository/backupManifest.ts';
import { deleteBackup } from '../../storage/repository/backups.ts';
import { collect } from '../../storage/repository/collectionFixture.ts';
import { Repository } from '../../storage/repository/repository.ts';
import {
  backUp,
  initTestRepository,
  readVolume,
  testSecret,
  testTime,
} from '../../storage/repository/repositoryFixture.ts';
import { openBelow } from '../sim/faultyFiles.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats when the file system is full`);

/** From 0 to before 1, the same for each seed (mulberry32). */
function* numbers(state: number): Generator<number, never> {
  for (;;) {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    yield ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }
}

const reserve = { notForPrefix: 'packs/', bytesMax: 64 * 1024 * 1024, hint: 'make room' };
const rounds = 12;

for (const kind of ['tmpfs', 'ext4'] as const)
  void t.test(
    `${kind} that fills up at any moment: nothing published is lost, and room is enough to go on`,
    async (t) => {
      const directory = await mkdtemp(join(tmpdir(), 'sp-full-'));
      const place = join(directory, 'mnt');
      await execa('mkdir', [place]);
      if (kind === 'tmpfs') await execa('mount', ['-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', place]);
      else {
        await execa('truncate', ['--size=32M', join(directory, 'disk')]);
        await execa('mkfs.ext4', ['-q', join(directory, 'disk')]);
        await execa('mount', ['-o', 'loop', join(directory, 'disk'), place]);
      }
      try {
        const root = join(place, 'vault');
        const backend = (): FileBackend => new FileBackend(root, { reserve });
        await backend().prepare();
        await initTestRepository(backend());
        const random = numbers(seed);
        const kept: { manifest: BackupManifest; volume: Buffer }[] = [];
        let full = 0;
        for (let round = 0; round < rounds; round++) {
          const volume = randomBytes(1_500_000);
          const filler = join(place, 'filler');
          const filling = fillLater(filler, random.next().value * 60);
          const repository = await Repository.open(backend(), testSecret);
          try {
            kept.push({ manifest: (await backUp(repository, volume)).manifest, volume });
          } catch (error) {
            full++;
            if (!(error instanceof StorageError)) throw error;
            t.match(error, { code: 'STORAGE_FULL', hint: /./ }, `round ${round}`);
          } finally {
            await filling;
            await rm(filler, { force: true });
          }
          t.same(await openBelow(place), []);
          const after = await Repository.open(backend(), testSecret);
          for (const { manifest, volume: stored } of kept)
            t.ok((await readVolume(after, manifest)).equals(stored), `round ${round}: ${manifest.id}`);
          const again = await backUp(after, volume);
          await deleteBackup(after.context, again.manifest.id, testTime);
          while (kept.length > 3)
            await deleteBackup(after.context, kept.shift()?.manifest.id ?? '', testTime);
          await collect(await Repository.open(backend(), testSecret));
          await backend().removeLeftovers(new Date(Date.now() + 1000));
          t.same(await readdir(join(root, 'tmp')), []);
        }
        t.comment(`${kind}: ${full} of ${rounds} backups met a full file system`);
      } finally {
        await execa('umount', [place]);
        await rm(directory, { recursive: true });
      }
    },
  );

/** Takes all room after so many milliseconds. */
async function fillLater(path: string, afterMs: number): Promise<void> {
  await sleep(afterMs);
  const { bavail, bsize } = await statfs(join(path, '..'));
  await writeFile(path, Buffer.alloc(bavail * bsize, 1)).catch((error: unknown) => {
    // The backup was faster: what is left is taken.
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOSPC')) throw error;
  });
}
