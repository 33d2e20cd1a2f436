import { createHash } from 'node:crypto';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { deleteBackup } from '../../storage/repository/backups.ts';
import { collect } from '../../storage/repository/collectionFixture.ts';
import { Repository } from '../../storage/repository/repository.ts';
import { backUp, testChunkBytes, testSecret, testTime } from '../../storage/repository/repositoryFixture.ts';

/*
 * A program for tests: backs up one volume after the other into a repository of files until it is killed, and prints
 * each backup that it was told of: `ID SEED`. Of each two it deletes the first one, says so beforehand
 * (`deleting ID`), and collects.
 */

/** The volume of a seed; half of it is the same for all seeds. */
export function killedVolume(seed: number): Buffer {
  const pieces = Array.from({ length: 8 }, (_, chunk) => {
    const key = createHash('sha256')
      .update(chunk < 4 ? `${chunk}` : `${seed}/${chunk}`)
      .digest();
    return Buffer.alloc(testChunkBytes, key);
  });
  return Buffer.concat(pieces);
}

const [, program, root, firstSeed] = process.argv;
if (program === import.meta.filename && root !== undefined) {
  const repository = await Repository.open(new FileBackend(root), testSecret);
  const store = async (seed: number): Promise<string> => {
    const { manifest } = await backUp(repository, killedVolume(seed));
    process.stdout.write(`${manifest.id} ${seed}\n`);
    return manifest.id;
  };
  for (let seed = Number(firstSeed); ; seed += 2) {
    const first = await store(seed);
    await store(seed + 1);
    process.stdout.write(`deleting ${first}\n`);
    await deleteBackup(repository.context, first, testTime);
    await collect(repository);
  }
}
