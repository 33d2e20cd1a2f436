import { createHash } from 'node:crypto';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { Repository } from '../../storage/repository/repository.ts';
import { backUp, testChunkBytes, testSecret } from '../../storage/repository/repositoryFixture.ts';

/*
 * A program for tests: backs up one volume after the other into a repository of files until it is killed, and prints
 * each backup that it was told of: `ID SEED`.
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
  for (let seed = Number(firstSeed); ; seed++) {
    const repository = await Repository.open(new FileBackend(root), testSecret);
    const { manifest } = await backUp(repository, killedVolume(seed));
    process.stdout.write(`${manifest.id} ${seed}\n`);
  }
}
