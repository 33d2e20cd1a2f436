import { createHash } from 'node:crypto';
import { rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { contentsOf } from '../../storage/repository/backupManifest.ts';
import { deleteBackup, listBackups } from '../../storage/repository/backups.ts';
import { formatRecoveryKey } from '../../storage/repository/recoveryKey.ts';
import { Repository } from '../../storage/repository/repository.ts';
import { backUp, testChunkBytes, testTime } from '../../storage/repository/repositoryFixture.ts';
import { makeRepository2 } from './goldenRepository2.ts';
import {
  goldenCost,
  goldenKeyFile,
  goldenLines as lines,
  goldenPassphrase,
  goldenRecovery,
  goldenSecrets,
} from './goldenSecrets.ts';

/*
 * Makes the golden repositories of this version: `node test/format/makeGolden.ts NUMBER DIRECTORY`. Each was made once
 * for version 1 and is never made again: whatever comes later must read it as it is.
 */

const [, , number, given] = process.argv;
if (given === undefined || (number !== '1' && number !== '2'))
  throw new Error('name the repository, 1 or 2, and the directory to make');
const directory = resolve(given);
await rm(directory, { recursive: true, force: true });

const store = join(directory, 'store');
const made =
  number === '1' ? { repository: await makeRepository1(), more: {} } : await makeRepository2(store);

const backups = await Promise.all(
  (await listBackups(made.repository.context)).map(async ({ id, manifest }) => {
    if (manifest === null) throw new Error('a golden backup cannot be read');
    const streams: Record<string, string> = {};
    for (const { name, content } of contentsOf(manifest)) {
      const bytes = await (await made.repository.openStream(content)).readAll();
      streams[name.replace('volume ', '')] = createHash('sha256').update(bytes).digest('hex');
    }
    return { id, streams };
  }),
);
const expected = {
  secrets: {
    passphrase: goldenPassphrase,
    keyFile: goldenKeyFile.toString('hex'),
    recovery: formatRecoveryKey(goldenRecovery),
  },
  backups,
  ...made.more,
};
await writeFile(join(directory, 'expected.json'), `${JSON.stringify(expected, null, 2)}\n`);

/** A parent and an increment around a rotation, and a backup that was deleted. */
async function makeRepository1(): Promise<Repository> {
  const backend = new FileBackend(store);
  await backend.prepare();
  const first = await Repository.init(backend, {
    ...goldenSecrets[0],
    createdAt: testTime,
    chunkSizeBytes: testChunkBytes,
    packSizeBytes: 16 * 1024,
    scryptCost: goldenCost,
  });
  const volume = Buffer.concat([
    lines(0, 5 * testChunkBytes),
    Buffer.alloc(1100 * testChunkBytes),
    lines(1_000_000, 2 * testChunkBytes + 777),
  ]);
  const { manifest: parent } = await backUp(first, volume);
  const { manifest: deleted } = await backUp(first, lines(9, 1000));
  await deleteBackup(first.context, deleted.id, testTime);
  const rotated = await first.rotate(goldenSecrets, { createdAt: testTime, cost: goldenCost });
  const changed = Buffer.from(volume);
  changed.fill(0, testChunkBytes, 2 * testChunkBytes);
  lines(77, 100).copy(changed, 1103 * testChunkBytes);
  await backUp(rotated, changed, {
    parent,
    changes: [
      { offsetBytes: testChunkBytes, lengthBytes: testChunkBytes, zero: true },
      { offsetBytes: 1103 * testChunkBytes, lengthBytes: 100, zero: false },
    ],
  });
  return rotated;
}
