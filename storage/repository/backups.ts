import { messageOf } from '../../common/errors.ts';
import { type CallOptions, listAll } from '../backends/backend.ts';
import { assertBackupId, type BackupManifest, decodeManifest } from './backupManifest.ts';
import { RepositoryError } from './errors.ts';
import {
  type Attempt,
  attemptOf,
  backupIdOf,
  deletionName,
  manifestName,
  prefixes,
  sessionName,
} from './names.ts';
import { deleteUnlessLocked } from './lockedStore.ts';
import { getObject, putObject, type RepositoryContext } from './objects.ts';

/** A backup, or what is left of one. */
export interface StoredBackup {
  readonly id: string;
  /** `null` when it cannot be read. */
  readonly manifest: BackupManifest | null;
  /** Why it cannot be used. */
  readonly problem: string | null;
}

/** Every backup that exists, oldest first; damaged ones included, and they hide no others. */
export async function listBackups(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<readonly StoredBackup[]> {
  const deleted = new Set<string>();
  for (const { name } of await listAll(context.backend, prefixes.deletions, call)) {
    const id = backupIdOf(name, prefixes.deletions);
    if (id !== null) deleted.add(id);
  }
  const backups: StoredBackup[] = [];
  for (const { name } of await listAll(context.backend, prefixes.manifests, call)) {
    const attempt = attemptOf(name, prefixes.manifests);
    if (attempt === null || deleted.has(attempt.backupId)) continue;
    const backup = await storedBackup(attempt.backupId, () => readAttempt(context, attempt, call));
    if (backup !== null) backups.push(backup);
  }
  return backups.toSorted((one, other) => (orderOf(one) < orderOf(other) ? -1 : 1));
}

/** The manifest of a backup, or `null` when it does not exist. Rejects with REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW. */
export async function readManifest(
  context: RepositoryContext,
  backupId: string,
  call: CallOptions = {},
): Promise<BackupManifest | null> {
  for (let attempt = 1; ; attempt++) {
    const manifest = await readAttempt(context, { backupId, attempt }, call);
    if (manifest !== 'fenced') return manifest;
  }
}

/**
 * What came of an attempt; `null` when nothing has yet, or the backup was deleted. One that is damaged or lost was a
 * fence if a later one was begun (docs/FORMAT.md, "Attempts"). Rejects as `readManifest`.
 */
export async function readAttempt(
  context: RepositoryContext,
  attempt: Attempt,
  call: CallOptions = {},
): Promise<BackupManifest | 'fenced' | null> {
  try {
    const found = await openAttempt(context, attempt, call);
    return found === null && (await isFollowed(context, attempt, call)) ? 'fenced' : found;
  } catch (error) {
    if (!(error instanceof RepositoryError) || error.code !== 'REPOSITORY_DAMAGED') throw error;
    if (await isFollowed(context, attempt, call)) return 'fenced';
    throw error;
  }
}

/** The same of the object alone: what is damaged is damaged, whatever else there is. */
export async function openAttempt(
  context: RepositoryContext,
  { backupId, attempt }: Attempt,
  call: CallOptions = {},
): Promise<BackupManifest | 'fenced' | null> {
  if ((await context.backend.size(deletionName(backupId), call)) !== null) return null;
  const name = manifestName(backupId, attempt);
  const object = await getObject(context, name, ['manifest', 'fence'], call);
  if (object === null) return null;
  if (object.type === 'fence') return 'fenced';
  const manifest = decodeManifest(object.content, name);
  assertBackupId(manifest, backupId, name);
  return manifest;
}

/** Whether a later attempt was begun: then a fence ended this one, whatever stands in its place now. */
export async function isFollowed(
  { backend }: RepositoryContext,
  { backupId, attempt }: Attempt,
  call: CallOptions = {},
): Promise<boolean> {
  // In this order: a session is removed only after the name of its manifest was taken.
  if ((await backend.size(sessionName(backupId, attempt + 1), call)) !== null) return true;
  return (await backend.size(manifestName(backupId, attempt + 1), call)) !== null;
}

/**
 * Deletes a backup for good; its data goes with the next collection. The deletion stays, so that a writer that comes
 * back late cannot revive it. Repeating it after a crash finishes the work; so does a collection, where what stands in
 * the place of an attempt is locked. Whether the backup is, the caller asks first.
 */
export async function deleteBackup(
  context: RepositoryContext,
  backupId: string,
  deletedAt: string,
  call: CallOptions = {},
): Promise<void> {
  const record = Buffer.from(JSON.stringify({ formatVersion: 1, backupId, deletedAt }));
  await putObject(context, 'deletion', deletionName(backupId), record, call);
  const { backend } = context;
  await deleteUnlessLocked(backend, manifestName(backupId), call);
  for (let attempt = 2; (await backend.size(manifestName(backupId, attempt), call)) !== null; attempt++)
    await deleteUnlessLocked(backend, manifestName(backupId, attempt), call);
}

/** One backup, or `null` when it does not exist; damage is told in it. */
export async function readBackup(
  context: RepositoryContext,
  id: string,
  call: CallOptions = {},
): Promise<StoredBackup | null> {
  return storedBackup(id, () => readManifest(context, id, call));
}

async function storedBackup(
  id: string,
  read: () => Promise<BackupManifest | 'fenced' | null>,
): Promise<StoredBackup | null> {
  try {
    const manifest = await read();
    return manifest === null || manifest === 'fenced' ? null : { id, manifest, problem: null };
  } catch (error) {
    if (!(error instanceof RepositoryError)) throw error;
    return { id, manifest: null, problem: messageOf(error) };
  }
}

/** By T1; ids are in the order of their making. */
function orderOf({ id, manifest }: StoredBackup): string {
  return `${manifest?.pointInTime ?? ''} ${id}`;
}
