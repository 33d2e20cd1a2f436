import { type CallOptions, listAll } from '../backends/backend.ts';
import { type Attempt, attemptOf, deletionName, manifestName, prefixes } from './names.ts';
import type { RepositoryContext } from './objects.ts';

/**
 * Attempts whose fences are gone, although a later one of the same backup stands under `manifests/`: who began that has
 * seen them all. Their names are free, so somebody who comes back late could commit the backup once more.
 *
 * @param attempts what stands under `manifests/`; of one backup or of many
 */
export function lostFencesAmong(attempts: readonly Attempt[]): readonly Attempt[] {
  return [...Map.groupBy(attempts, ({ backupId }) => backupId)].flatMap(([backupId, ofBackup]) => {
    const present = new Set(ofBackup.map(({ attempt }) => attempt));
    const last = Math.max(...present);
    const before = Array.from({ length: last - 1 }, (_, index) => index + 1);
    return before.filter((attempt) => !present.has(attempt)).map((attempt) => ({ backupId, attempt }));
  });
}

/** The same in a repository; of backups that are deleted nothing is missing. */
export async function findLostFences(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<readonly Attempt[]> {
  const listed = await listAll(context.backend, prefixes.manifests, call);
  const attempts = listed.map(({ name }) => attemptOf(name, prefixes.manifests));
  const lost: Attempt[] = [];
  for (const attempt of lostFencesAmong(attempts.filter((one) => one !== null)))
    if (await isLost(context, attempt, call)) lost.push(attempt);
  return lost;
}

/** Whether the name of an attempt is free, and its backup not deleted: a listing may be old. */
export async function isLost(
  { backend }: RepositoryContext,
  { backupId, attempt }: Attempt,
  call: CallOptions = {},
): Promise<boolean> {
  if ((await backend.size(manifestName(backupId, attempt), call)) !== null) return false;
  return (await backend.size(deletionName(backupId), call)) === null;
}

/** What is said of it. */
export function lostFenceText({ backupId, attempt }: Attempt): string {
  return `${manifestName(backupId, attempt)} is gone: a fence that kept an earlier attempt at this backup from being committed`;
}
