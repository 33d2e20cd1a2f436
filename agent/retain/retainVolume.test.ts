import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { BandwidthLimit } from '../../common/bandwidth.ts';
import { newId } from '../../common/ids.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import { DirectoryStorage } from '../../storage/directory/directoryStorage.ts';
import { machine, makeSample, storeSample } from '../../storage/directory/fixture.ts';
import { GeneratedSource, problemOfVolume, turns } from '../../storage/directory/volumeFixture.ts';
import { placeFor, store as storeInRepository } from '../../storage/repositoryStorage/fixture.ts';
import type { BackupWriter } from '../../storage/storage.ts';
import type { VolumeRead } from '../snapshot/readPlan.ts';
import { type ReadOptions, retainVolume } from './retainVolume.ts';

const mebibyte = 1024 * 1024;
const name = 'vm-001-vda.qcow2.20261121T000000.000Z';
const owner = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, mode: 0o600 };

interface Place {
  readonly directory: string;
  readonly writers: Map<string, BackupWriter>;
  readonly reads: Record<string, VolumeRead>;
}

/** Storages with a backup of the volume in each, and a backup on its way. */
async function placeWith(test: Test, storages: readonly string[]): Promise<Place> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-'));
  test.teardown(() => rm(directory, { recursive: true, force: true }));
  const place: Place = { directory, writers: new Map(), reads: {} };
  for (const storageName of storages) {
    const path = join(directory, storageName);
    await mkdir(path);
    const storage = new DirectoryStorage({ name: storageName, path });
    const sample = await makeSample(directory);
    await storeSample(storage, sample);
    place.reads[storageName] = { parent: sample.manifest.id, checkpoint: 'stillpoint-1' };
    place.writers.set(storageName, await storage.begin({ jobId: newId(), machine }));
  }
  return place;
}

function sourceOf(): { readonly source: GeneratedSource; readonly changes: readonly Extent[] } {
  const changes = turns([2 * mebibyte, 14 * mebibyte, 16 * mebibyte], true);
  return { source: new GeneratedSource(16 * mebibyte, changes), changes };
}

async function retain(
  { writers, reads }: Place,
  source: VolumeSource,
  changes: readonly Extent[],
  options: Partial<ReadOptions> = {},
): ReturnType<typeof retainVolume> {
  const warnings: string[] = [];
  return retainVolume(
    writers,
    { target: 'vda', owner, allocatedBytes: 16 * mebibyte, reads },
    name,
    { source, changes: () => Promise.resolve(changes), [Symbol.asyncDispose]: () => Promise.resolve() },
    {
      signal: new AbortController().signal,
      limit: new BandwidthLimit(),
      onProgress: () => undefined,
      warn: (message) => void warnings.push(message),
      ...options,
    },
  );
}

async function requireWhole(test: Test, place: Place, source: GeneratedSource): Promise<void> {
  for (const [storage, { directory }] of place.writers) {
    if (directory === null) continue;
    const problem = await problemOfVolume(join(directory, name), source, join(place.directory, 'reference'));
    test.equal(problem, null, `${storage} holds the volume`);
  }
}

void t.test('increments for several storages are read once', async (t) => {
  const place = await placeWith(t, ['one', 'two', 'three']);
  const { source, changes } = sourceOf();
  const { reads } = await retain(place, source, changes);
  t.equal(source.reads, 12, '12 MiB, a MiB at a time');
  t.same(reads, place.reads);
  await requireWhole(t, place, source);
});

void t.test('a storage without a parent copies what another one has got, and says why', async (t) => {
  const place = await placeWith(t, ['first', 'new', 'damaged']);
  place.reads['new'] = { reason: 'no earlier backup' };
  place.reads['damaged'] = { parent: newId(), checkpoint: 'stillpoint-1' };
  const { source, changes } = sourceOf();
  const { reads } = await retain(place, source, changes);
  t.equal(source.reads, 12);
  t.match(reads, {
    first: { parent: String },
    new: { reason: 'no earlier backup' },
    damaged: { reason: /there is no backup/ },
  });
  await requireWhole(t, place, source);
});

void t.test('a storage that fails ends the others, with its own error', async (t) => {
  const place = await placeWith(t, ['one', 'two']);
  const { source, changes } = sourceOf();
  const broken = place.writers.get('two');
  if (broken === undefined) throw new Error('no writer');
  const reason = new Error('the disk is gone');
  place.writers.set(
    'two',
    Object.assign(Object.create(broken), {
      addIncrement: async (from: VolumeSource) => {
        await from.readInto(Buffer.alloc(mebibyte), 2 * mebibyte);
        throw reason;
      },
    }),
  );
  await t.rejects(retain(place, source, changes), reason);
  t.ok(source.reads < 20, 'it does not go on for ever');
});

void t.test('a cancelled job ends all, with its reason', async (t) => {
  const place = await placeWith(t, ['one', 'two']);
  const { source, changes } = sourceOf();
  const cancelled = new AbortController();
  const reason = new Error('cancelled');
  const onProgress = (): void => cancelled.abort(reason);
  await t.rejects(retain(place, source, changes, { signal: cancelled.signal, onProgress }), reason);
});

/** A repository beside the storages of a place, with a backup of the volume in it, and one on its way. */
async function addRepository(test: Test, place: Place, storageName: string): Promise<BackupWriter> {
  const { storage, other } = await placeFor(test, storageName, place.directory, [4 * mebibyte, mebibyte]);
  const before = Buffer.alloc(16 * mebibyte);
  before.fill(7, 0, mebibyte);
  const { entry } = await storeInRepository({ directory: place.directory, storage, other }, before);
  if (entry.id === null) throw new Error('the backup has no id');
  place.reads[storageName] = { parent: entry.id, checkpoint: 'stillpoint-1' };
  const writer = await storage.begin({ jobId: newId(), backupId: newId(), machine });
  place.writers.set(storageName, writer);
  // For what it is compared with.
  return storage.begin({ jobId: newId(), backupId: newId(), machine });
}

void t.test(
  'a directory and a repository, which read in different pieces, read an increment once',
  async (t) => {
    const place = await placeWith(t, ['one', 'two']);
    const reference = await addRepository(t, place, 'vault');
    const ends = [64, 128, 3072, 3136, 3584, 3712, 12_288, 16_384];
    const changes = turns(
      ends.map((end) => end * 1024),
      true,
    );
    const source = new GeneratedSource(16 * mebibyte, changes);
    const { files, reads } = await retain(place, source, changes);
    t.equal(source.reads, 6, 'the first and the fourth MiB, and the last four');
    t.same(reads, place.reads, 'each as an increment');
    await requireWhole(t, place, source);
    t.equal(files['vault']?.sha256, (await reference.addVolume(source, name)).sha256);
  },
);

void t.test('a first backup into directories and repositories is read once', async (t) => {
  const place = await placeWith(t, ['one', 'two']);
  const references = new Map([
    ['vault', await addRepository(t, place, 'vault')],
    ['second vault', await addRepository(t, place, 'second vault')],
  ]);
  for (const storageName of place.writers.keys()) place.reads[storageName] = { reason: 'no earlier backup' };
  const { source } = sourceOf();
  const { files } = await retain(place, source, []);
  t.equal(source.reads, 12, '12 MiB, a MiB at a time');
  await requireWhole(t, place, source);
  for (const [storageName, reference] of references)
    t.equal(files[storageName]?.sha256, (await reference.addVolume(source, name)).sha256);
});

void t.test('a repository that is new reads the whole beside an increment of a directory', async (t) => {
  const place = await placeWith(t, ['one']);
  const reference = await addRepository(t, place, 'vault');
  place.reads['vault'] = { reason: 'no earlier backup' };
  const { source, changes } = sourceOf();
  const { files, reads } = await retain(place, source, changes);
  t.equal(source.reads, 12);
  t.same(reads, place.reads);
  await requireWhole(t, place, source);
  t.equal(files['vault']?.sha256, (await reference.addVolume(source, name)).sha256);
});
