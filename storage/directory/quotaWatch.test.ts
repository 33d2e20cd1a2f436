import { mkdir, readdir, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { exists } from '../../common/files.ts';
import { newId } from '../../common/ids.ts';
import { noBounds } from '../space.ts';
import type { DirectoryBackupWriter } from './writer.ts';
import { DirectoryStorage } from './directoryStorage.ts';
import { machine } from './fixture.ts';
import { GeneratedSource, turns } from './volumeFixture.ts';

const mebibyte = 1024 * 1024;

interface Bench {
  readonly work: string;
  readonly storage: DirectoryStorage;
  readonly writer: DirectoryBackupWriter;
}

async function benchFor(test: Test, quotaBytes: number): Promise<Bench> {
  const work = test.testdir({ root: {} });
  const bounds = { ...noBounds, quotaBytes };
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root'), bounds });
  return { work, storage, writer: await storage.begin({ jobId: newId(), machine }) };
}

void t.test('a volume that passes the quota is given up on the way, and leaves nothing', async (t) => {
  const { storage, writer } = await benchFor(t, 8 * mebibyte);
  const source = new GeneratedSource(256 * mebibyte, turns([256 * mebibyte], false));
  let doneBytes = 0;
  const onProgress = (bytes: number): void => void (doneBytes = bytes);
  await t.rejects(writer.addVolume(source, 'v', { onProgress }), { code: 'QUOTA_EXCEEDED' });
  t.ok(doneBytes < 128 * mebibyte, `not read to its end: ${doneBytes}`);
  t.same(await readdir(writer.directory), []);
  t.equal((await storage.space()).storedBytes, 0);
});

void t.test('zeros take nothing of a quota', async (t) => {
  const { storage, writer } = await benchFor(t, 8 * mebibyte);
  const source = new GeneratedSource(
    1024 * mebibyte,
    turns([mebibyte, 1023 * mebibyte, 1024 * mebibyte], false),
  );
  await writer.addVolume(source, 'v');
  const { storedBytes } = await storage.space();
  t.ok((storedBytes ?? 0) >= 2 * mebibyte && (storedBytes ?? 0) < 4 * mebibyte, `${storedBytes}`);
});

void t.test('a file that passes the quota is neither copied in nor moved in', async (t) => {
  const { work, writer } = await benchFor(t, mebibyte);
  const file = join(work, 'file');
  await writeFile(file, Buffer.alloc(2 * mebibyte, 1));
  await t.rejects(writer.addByCopy(file, 'c'), { code: 'QUOTA_EXCEEDED' });
  await t.rejects(writer.addByRename(file, 'r'), { code: 'QUOTA_EXCEEDED' });
  t.ok(await exists(file), 'it stays where it was');
  t.same(await readdir(writer.directory), []);
});

void t.test('what other backups hold counts, and what is sparse does not', async (t) => {
  const { work, storage, writer } = await benchFor(t, 3 * mebibyte);
  await mkdir(join(work, 'root', 'other', 'deep'), { recursive: true });
  await writeFile(join(work, 'root', 'other', 'deep', 'file'), Buffer.alloc(2 * mebibyte, 1));
  await writeFile(join(work, 'root', 'sparse'), '');
  await truncate(join(work, 'root', 'sparse'), 1024 * mebibyte);
  t.equal((await storage.space()).storedBytes, 2 * mebibyte);
  const file = join(work, 'file');
  await writeFile(file, Buffer.alloc(2 * mebibyte, 1));
  await t.rejects(writer.addByCopy(file, 'c'), { code: 'QUOTA_EXCEEDED' });
});
