import { randomBytes } from 'node:crypto';
import { newId } from '../../common/ids.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import { type BackupManifest, contentsOf } from './backupManifest.ts';
import { deleteBackup, listBackups, readManifest } from './backups.ts';
import { ChunkIndex } from './chunkIndex.ts';
import { ChunkReader } from './chunkReader.ts';
import { type CollectionOptions, type CollectionReport, collectGarbage } from './collection.ts';
import { packName } from './names.ts';
import { referencedChunks } from './references.ts';
import { Repository } from './repository.ts';
import {
  backUp,
  initTestRepository,
  readVolume,
  testChunkBytes,
  testSecret,
  testTime,
} from './repositoryFixture.ts';

/** Collects with a collector that takes every session that it meets for dead. */
export async function collect(
  repository: Repository,
  options: Partial<CollectionOptions> = {},
): Promise<CollectionReport> {
  return collectGarbage(repository, {
    collector: { host: 'test', at: testTime },
    repackBelow: 1,
    onOpenSession: () => Promise.resolve('fence'),
    ...options,
  });
}

/**
 * What is in a store that nobody needs, and that a complete collection with `repackBelow` 1 leaves not: looked for
 * without the code of collections.
 */
export async function remainsIn(store: ObjectStore): Promise<readonly string[]> {
  const { context } = await Repository.open(store.client(), testSecret);
  const index = await ChunkIndex.load(context);
  // An index that was lost is made again by a rebuild, not by a collection.
  await index.readUnknownPacks();
  const found: string[] = [];
  found.push(...index.problems.map(({ name, reason }) => `${name}: ${reason}`));
  const needed = new Set<string>();
  const backups = await listBackups(context);
  for (const { manifest } of backups)
    for (const { content } of manifest === null ? [] : contentsOf(manifest))
      for await (const { id } of referencedChunks(new ChunkReader(context, index), content))
        needed.add(id.toString('hex'));
  const seen = new Set<string>();
  for (const { pack, entry } of index.places()) {
    const id = entry.id.toString('hex');
    const where = packName(index.pack(pack).id);
    if (!store.objects.has(where)) found.push(`${where} is in an index, and gone`);
    else if (!needed.has(id)) found.push(`${where} has chunk ${id}, which nobody needs`);
    else if (seen.has(id)) found.push(`${where} has chunk ${id} once more`);
    seen.add(id);
  }
  for (const prefix of ['marks/', 'verdicts/', 'quarantine/'])
    found.push(...store.names(prefix).map((name) => `${name} is left`));
  for (const name of store.names('sessions/'))
    if (store.objects.has(name.replace('sessions/', 'manifests/'))) found.push(`${name} is left`);
  for (const name of store.names('deletions/')) {
    const manifest = name.replace('deletions/', 'manifests/');
    if (store.objects.has(manifest)) found.push(`${manifest} is left, though deleted`);
  }
  const named = index.packs.map(({ id }) => packName(id));
  for (const name of store.names('packs/')) if (!named.includes(name)) found.push(`${name} is left`);
  return found;
}

/** A repository as it is before a collection. */
export interface AgedRepository {
  readonly store: ObjectStore;
  readonly kept: readonly { readonly manifest: BackupManifest; readonly volume: Buffer }[];
  /** Of the backups that were deleted. */
  readonly goneVolumes: readonly Buffer[];
}

/**
 * Backups of which some are deleted: packs with nothing, something and everything that is needed. And a session whose
 * writer is gone.
 */
export async function agedRepository(): Promise<AgedRepository> {
  const store = new ObjectStore();
  const repository = await initTestRepository(store.client(), 1024);
  const pieces = Array.from({ length: 5 }, () => smallChunk());
  const volumes = [0, 1, 2, 3].map((number) =>
    Buffer.concat([...pieces.slice(number, number + 2), smallChunk()]),
  );
  const kept = [];
  for (const [number, volume] of volumes.entries()) {
    const { manifest } = await backUp(repository, volume);
    if (number % 2 === 1) kept.push({ manifest, volume });
    else await deleteBackup(repository.context, manifest.id, testTime);
  }
  await repository.begin({ backupId: newId(), startedAt: testTime });
  return { store, kept, goneVolumes: volumes.filter((_, number) => number % 2 === 0) };
}

/** A chunk that takes little. */
export function smallChunk(): Buffer {
  return Buffer.concat([randomBytes(300), Buffer.alloc(testChunkBytes - 300)]);
}

/** Of some backups those that cannot be restored, each with the reason. */
export async function unreadable(
  store: ObjectStore,
  backups: AgedRepository['kept'],
): Promise<readonly string[]> {
  const repository = await Repository.open(store.client(), testSecret);
  const found: string[] = [];
  for (const { manifest, volume } of backups) {
    const there = await readManifest(repository.context, manifest.id);
    if (there === null) found.push(`${manifest.id} is not there`);
    else
      await readVolume(repository, there).then(
        (read) => read.equals(volume) || found.push(`${manifest.id} is not what it was`),
        (error: unknown) => found.push(`${manifest.id} cannot be read: ${String(error)}`),
      );
  }
  return found;
}

/** Packs that an index object names though they are not there. */
export async function namedAndGone(store: ObjectStore): Promise<readonly string[]> {
  const { context } = await Repository.open(store.client(), testSecret);
  const index = await ChunkIndex.load(context);
  return index.packs.map(({ id }) => packName(id)).filter((name) => !store.objects.has(name));
}
