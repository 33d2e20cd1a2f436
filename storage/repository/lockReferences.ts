import { listAll } from '../backends/backend.ts';
import type { ChunkIndex } from './chunkIndex.ts';
import type { CoverOptions } from './lockedStore.ts';
import { type Attempt, manifestName, packName, prefixes } from './names.ts';
import type { RepositoryContext } from './objects.ts';

/** What a backup that is about to be committed is read by. */
export interface BackupReferences extends Attempt {
  readonly index: ChunkIndex;
  /** Numbers of packs in the index. */
  readonly packs: ReadonlySet<number>;
  /** Names of index objects that its session has made. */
  readonly newIndexes: readonly string[];
}

/**
 * Has everything that is needed to read a backup be kept for as long as the backup, where the store locks objects: what
 * it shares with others, and what the store may have dropped. To be called before the commit, so that no backup exists
 * that is not kept.
 *
 * Rejects with CHUNK_MISSING for a pack that has gone, OBJECT_LOCK_NOT_ENFORCED.
 */
export async function lockReferences(
  { lock, backend }: RepositoryContext,
  { index, packs, newIndexes, backupId, attempt }: BackupReferences,
  options: CoverOptions,
): Promise<void> {
  if (lock === null) return;
  const packNames = [...packs].map((pack) => packName(index.pack(pack).id));
  await lock.cover(packNames, options);
  // Index objects that are superseded, and fences of attempts that were deleted, are not needed.
  const others = [...index.objectNames, ...newIndexes];
  for (const prefix of [prefixes.config, prefixes.keys])
    others.push(...(await listAll(backend, prefix, options)).map(({ name }) => name));
  for (let earlier = 1; earlier < attempt; earlier++) others.push(manifestName(backupId, earlier));
  await lock.cover(others, { ...options, mayBeGone: true });
}
