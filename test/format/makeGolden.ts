import { createHash } from 'node:crypto';
import { rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { contentsOf } from '../../storage/repository/backupManifest.ts';
import { deleteBackup, listBackups } from '../../storage/repository/backups.ts';
import { formatRecoveryKey } from '../../storage/repository/recoveryKey.ts';
import { Repository } from '../../storage/repository/repository.ts';
import { backUp, testChunkBytes, testTime } from '../../storage/repository/repositoryFixture.ts';

/*
 * Makes the golden repository of this version: `node test/format/makeGolden.ts DIRECTORY`. It was made once for
 * version 1 and is never made again: whatever comes later must read it as it is.
 */

const directory = resolve(process.argv[2] ?? '');
if (process.argv[2] === undefined) throw new Error('name the directory to make');
await rm(directory, { recursive: true, force: true });

const scryptCost = { logN: 14, r: 8, p: 1 };
const passphrase = 'a still caf\u00e9';
const keyFile = Buffer.from('0123456789abcdef'.repeat(4), 'hex');
const recovery = Buffer.from('fedcba9876543210'.repeat(4), 'hex');
const secrets = [
  { label: 'passphrase', secret: { kind: 'passphrase', passphrase } },
  { label: 'key file', secret: { kind: 'keyFile', key: keyFile } },
  { label: 'recovery', secret: { kind: 'recovery', key: recovery } },
] as const;

/** Lines that compress well. */
function lines(from: number, lengthBytes: number): Buffer {
  let text = '';
  for (let line = from; text.length < lengthBytes; line++) text += `line ${line} of a golden volume\n`;
  return Buffer.from(text.slice(0, lengthBytes));
}

const backend = new FileBackend(join(directory, 'store'));
await backend.prepare();
const first = await Repository.init(backend, {
  ...secrets[0],
  createdAt: testTime,
  chunkSizeBytes: testChunkBytes,
  packSizeBytes: 16 * 1024,
  scryptCost,
});
const volume = Buffer.concat([
  lines(0, 5 * testChunkBytes),
  Buffer.alloc(1100 * testChunkBytes),
  lines(1_000_000, 2 * testChunkBytes + 777),
]);
const { manifest: parent } = await backUp(first, volume);
const { manifest: deleted } = await backUp(first, lines(9, 1000));
await deleteBackup(first.context, deleted.id, testTime);
const rotated = await first.rotate(secrets, { createdAt: testTime, cost: scryptCost });
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

const backups = await Promise.all(
  (await listBackups(rotated.context)).map(async ({ id, manifest }) => {
    if (manifest === null) throw new Error('a golden backup cannot be read');
    const streams: Record<string, string> = {};
    for (const { name, content } of contentsOf(manifest)) {
      const bytes = await (await rotated.openStream(content)).readAll();
      streams[name.replace('volume ', '')] = createHash('sha256').update(bytes).digest('hex');
    }
    return { id, streams };
  }),
);
const expected = {
  secrets: { passphrase, keyFile: keyFile.toString('hex'), recovery: formatRecoveryKey(recovery) },
  backups,
};
await writeFile(join(directory, 'expected.json'), `${JSON.stringify(expected, null, 2)}\n`);
