import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BandwidthLimit } from '../common/bandwidth.ts';
import t, { type Test } from 'tap';
import { Hold } from '../common/hold.ts';
import { newId } from '../common/ids.ts';
import { eventually } from '../test/lab/eventually.ts';
import { FileBackend } from './backends/fileBackend.ts';
import { DeadlineStorage } from './deadlines.ts';
import { DirectoryStorage } from './directory/directoryStorage.ts';
import { GeneratedSource, turns } from './directory/volumeFixture.ts';
import { Repository } from './repository/repository.ts';
import { initTestRepository, testSecret } from './repository/repositoryFixture.ts';
import { RepositoryStorage } from './repositoryStorage/repositoryStorage.ts';
import type { BackupWriter, BeginRequest, Storage } from './storage.ts';

const mebibyte = 1024 * 1024;
const machine = { name: 'vm', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' };
/** Shorter than a pause of the tests, and longer than anything takes on a busy machine. */
const stallMs = 3000;
const pauseMs = 1.4 * stallMs;

const kinds = ['directory', 'repository'] as const;
const volumeBytes = { directory: 64 * mebibyte, repository: 8 * mebibyte } as const;

async function storageFor(
  test: Test,
  kind: (typeof kinds)[number],
  silenceMs = stallMs,
): Promise<{ storage: Storage; root: string }> {
  const root = join(test.testdir(), 'root');
  await mkdir(root);
  const patience = { answerMs: 60_000, stallMs: silenceMs };
  if (kind === 'directory')
    return {
      root,
      storage: new DeadlineStorage(new DirectoryStorage({ name: 'local', path: root }), patience),
    };
  await initTestRepository(new FileBackend(root));
  const repository = new RepositoryStorage({
    name: 'vault',
    location: root,
    open: () => Repository.open(new FileBackend(root), testSecret),
    room: () => Promise.resolve(null),
  });
  return { root, storage: new DeadlineStorage(repository, patience) };
}

/** A volume that closes a hold when so much of it was read. */
class ClosingSource extends GeneratedSource {
  readonly #hold: Hold;
  #hasClosed = false;

  constructor(sizeBytes: number, hold: Hold) {
    super(sizeBytes, turns([sizeBytes], false));
    this.#hold = hold;
  }

  override async readInto(target: Buffer, offsetBytes: number): Promise<void> {
    await super.readInto(target, offsetBytes);
    if (this.reads < 8 || this.#hasClosed) return;
    this.#hasClosed = true;
    this.#hold.close();
  }
}

/** Names of everything that was stored. */
async function filesIn(root: string): Promise<readonly string[]> {
  return (await readdir(root, { recursive: true })).filter((name) => !name.includes('tmp')).toSorted();
}

for (const kind of kinds) {
  const writeVolume = (writer: BackupWriter, source: GeneratedSource, signal?: AbortSignal) =>
    writer.addVolume(source, 'v', { signal });

  void t.test(
    `${kind}: a backup that is held reads and sends nothing, and is not taken for stalled`,
    async (t) => {
      const { storage, root } = await storageFor(t, kind);
      const plain = await storage.begin({ jobId: newId(), backupId: newId(), machine });
      const sizeBytes = volumeBytes[kind];
      const expected = await writeVolume(plain, new GeneratedSource(sizeBytes, turns([sizeBytes], false)));
      await plain.abandon();

      const hold = new Hold();
      const source = new ClosingSource(sizeBytes, hold);
      const writer = await storage.begin({ jobId: newId(), backupId: newId(), machine, hold });
      const adding = writeVolume(writer, source);
      await eventually(() => hold.isClosed);
      await sleep(stallMs / 3); // what was under way ends
      const [reads, files] = [source.reads, await filesIn(root)];
      await sleep(pauseMs);
      t.equal(source.reads, reads, 'nothing was read');
      t.same(await filesIn(root), files, 'nothing was sent');
      hold.open();
      t.same(await adding, expected, 'it is what it would have been');
      t.ok(source.reads > reads);
      await writer.abandon();
    },
  );

  void t.test(`${kind}: a signal ends a backup that is held`, async (t) => {
    const { storage } = await storageFor(t, kind);
    const hold = new Hold();
    const source = new ClosingSource(volumeBytes[kind], hold);
    const writer = await storage.begin({ jobId: newId(), backupId: newId(), machine, hold });
    const stop = new AbortController();
    const adding = writeVolume(writer, source, stop.signal);
    await eventually(() => hold.isClosed);
    const reason = new Error('the overlay is full');
    stop.abort(reason);
    await t.rejects(adding, reason);
  });
}

/** Takes volumes, and never answers. */
class SilentStorage extends DirectoryStorage {
  override async begin(request: BeginRequest): ReturnType<DirectoryStorage['begin']> {
    const writer = await super.begin(request);
    writer.addVolume = () => Promise.withResolvers<never>().promise;
    return writer;
  }
}

void t.test('a storage that is silent after a pause is away all the same', async (t) => {
  const root = join(t.testdir(), 'root');
  await mkdir(root);
  const patience = { answerMs: 60_000, stallMs };
  const storage = new DeadlineStorage(new SilentStorage({ name: 'local', path: root }), patience);
  const hold = new Hold();
  const writer = await storage.begin({ jobId: newId(), backupId: newId(), machine, hold });
  hold.close();
  const source = new GeneratedSource(mebibyte, turns([mebibyte], false));
  let isOver = false;
  const adding = writer.addVolume(source, 'v', {}).finally(() => (isOver = true));
  adding.catch(() => undefined);
  await sleep(pauseMs);
  t.notOk(isOver, 'a pause is no silence');
  hold.open();
  await t.rejects(adding, { code: 'STORAGE_UNREACHABLE' });
});

void t.test('a file that is copied into a directory is held, too', async (t) => {
  const { storage, root } = await storageFor(t, 'directory');
  const from = join(root, '..', 'file');
  await writeFile(from, Buffer.alloc(32 * mebibyte, 7));
  const hold = new Hold();
  const writer = await storage.begin({ jobId: newId(), backupId: newId(), machine, hold });
  let done = 0;
  const onProgress = (bytes: number): void => {
    if (done === 0) hold.close();
    done = bytes;
  };
  const adding = writer.addByCopy(from, 'f', { onProgress });
  await eventually(() => hold.isClosed);
  await sleep(pauseMs);
  t.ok(done < 32 * mebibyte, `${done} bytes`);
  hold.open();
  t.equal((await adding).sizeBytes, 32 * mebibyte);
});

for (const kind of kinds)
  void t.test(`${kind}: what was not read in a pause is not made up for beyond the bandwidth`, async (t) => {
    const { storage } = await storageFor(t, kind, 60_000);
    const hold = new Hold();
    const writer = await storage.begin({ jobId: newId(), backupId: newId(), machine, hold });
    const sizeBytes = 24 * mebibyte;
    const source = new GeneratedSource(sizeBytes, turns([sizeBytes], false));
    hold.close();
    const adding = writer.addVolume(source, 'v', {
      limit: new BandwidthLimit(12 * mebibyte),
    });
    await sleep(2000);
    const resumedMs = performance.now();
    hold.open();
    await adding;
    // The last piece is paid for by nobody.
    t.ok(performance.now() - resumedMs > 1200, `${performance.now() - resumedMs} ms`);
    await writer.abandon();
  });
