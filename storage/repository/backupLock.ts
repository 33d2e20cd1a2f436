import { type CallOptions, listAll } from '../backends/backend.ts';
import { isFollowed } from './backups.ts';
import { attemptOf, backupIdOf, deletionName, manifestName, prefixes } from './names.ts';
import type { RepositoryContext } from './objects.ts';

/** Until when a backup cannot be deleted, if that is in the future: until the last of its attempts can be. */
export async function backupLockedUntil(
  context: RepositoryContext,
  backupId: string,
  call: CallOptions = {},
): Promise<Date | null> {
  const { lock } = context;
  if (lock === null) return null;
  let latest: Date | null = null;
  for (let attempt = 1; ; attempt++) {
    const status = await lock.status(manifestName(backupId, attempt), call);
    // A fence that somebody has deleted was one all the same: what counts stands behind it.
    if (status === null && !(await isFollowed(context, { backupId, attempt }, call))) return latest;
    const until = status === null ? null : lock.endOf(status);
    if (until !== null && (latest === null || until > latest)) latest = until;
  }
}

/** A backup that is said to be deleted and cannot have been, by us. */
export interface UntimelyDeletion {
  readonly backupId: string;
  /** Of the deletion. */
  readonly name: string;
  readonly lockedUntil: Date;
}

/** Deletions of backups that are locked: no host of ours makes one, so somebody wants to have the backups be gone. */
export async function untimelyDeletions(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<readonly UntimelyDeletion[]> {
  const found: UntimelyDeletion[] = [];
  if (context.lock === null) return found;
  const manifests = await listAll(context.backend, prefixes.manifests, call);
  const present = new Set(manifests.map(({ name }) => attemptOf(name, prefixes.manifests)?.backupId));
  for (const { name } of await listAll(context.backend, prefixes.deletions, call)) {
    const backupId = backupIdOf(name, prefixes.deletions);
    // Deletions stay for ever, and nearly all of them are of backups that have gone.
    if (backupId === null || !present.has(backupId)) continue;
    const lockedUntil = await backupLockedUntil(context, backupId, call);
    if (lockedUntil !== null) found.push({ backupId, name: deletionName(backupId), lockedUntil });
  }
  return found;
}
