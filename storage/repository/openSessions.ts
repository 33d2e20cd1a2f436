import * as z from 'zod';
import { type CallOptions, listAll } from '../backends/backend.ts';
import { readAttempt } from './backups.ts';
import { parseDocument } from './document.ts';
import { RepositoryError } from './errors.ts';
import { attemptsMax, objectBytesMax } from './limits.ts';
import { type Attempt, attemptOf, deletionName, manifestName, prefixes, sessionName } from './names.ts';
import { getObject, putObject, type RepositoryContext } from './objects.ts';
import { sessionOwnerSchema } from './sessionOwner.ts';

const announcementSchema = z.object({
  host: z.string(),
  jobId: z.string().optional(),
  processId: z.number(),
  owner: sessionOwnerSchema.optional(),
  startedAt: z.string(),
});

/** A backup that is being written, or whose writer is gone: nobody can tell the two apart for certain. */
export interface OpenSession extends Attempt {
  /** Who writes it, for people; `null` when that cannot be read. */
  readonly announcement: z.infer<typeof announcementSchema> | null;
}

/**
 * Every session whose backup is not decided. Sessions that nothing can come of any more are removed.
 *
 * A listing that misses a session makes a collection unsafe; see FORMAT.md, "What a collection needs".
 */
export async function openSessions(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<readonly OpenSession[]> {
  const open: OpenSession[] = [];
  for (const { name } of await listAll(context.backend, prefixes.sessions, call)) {
    const attempt = attemptOf(name, prefixes.sessions);
    if (attempt === null || (await hasSessionEnded(context, attempt, call))) continue;
    open.push({ ...attempt, announcement: await readAnnouncement(context, name, call) });
  }
  return open;
}

/**
 * Whether nothing more can come of a session: it is gone, or its backup is decided. Then the session is removed, too.
 */
export async function hasSessionEnded(
  context: RepositoryContext,
  { backupId, attempt }: Attempt,
  call: CallOptions = {},
): Promise<boolean> {
  const { backend } = context;
  // In this order: a session is removed only after its backup was decided.
  if ((await backend.size(sessionName(backupId, attempt), call)) === null) return true;
  if (!(await isDecided(context, { backupId, attempt }, call))) return false;
  await backend.delete(sessionName(backupId, attempt), call);
  return true;
}

/**
 * Sees to it that an attempt that is not committed never will be: its name is taken by a fence. Returns which of the
 * two it is; the commit and the fence race for one name, and the store decides.
 */
export async function fenceBackup(
  context: RepositoryContext,
  { backupId, attempt }: Attempt,
  call: CallOptions = {},
): Promise<'fenced' | 'committed'> {
  const name = manifestName(backupId, attempt);
  const record = Buffer.from(JSON.stringify({ formatVersion: 1, backupId }));
  if ((await putObject(context, 'fence', name, record, call)) !== 'taken') return 'fenced';
  const there = await getObject(context, name, ['manifest', 'fence'], call);
  return there?.type === 'manifest' ? 'committed' : 'fenced';
}

/**
 * The attempt that a backup is written in by who still has all that it is made of: the first one that was not given
 * up. Of those before it none can ever be committed, so that there is one manifest at most.
 */
export async function attemptAfterFences(
  context: RepositoryContext,
  backupId: string,
  call: CallOptions = {},
): Promise<number> {
  for (let attempt = 1; attempt <= attemptsMax; attempt++) {
    if ((await readAttempt(context, { backupId, attempt }, call)) !== 'fenced') return attempt;
  }
  throw new RepositoryError('BACKUP_FENCED', `backup ${backupId} was given up ${attemptsMax} times`);
}

/** The name of the manifest is taken, by a manifest or a fence; or whatever takes it does not count. */
async function isDecided(
  context: RepositoryContext,
  { backupId, attempt }: Attempt,
  call: CallOptions,
): Promise<boolean> {
  if ((await context.backend.size(manifestName(backupId, attempt), call)) !== null) return true;
  return (await context.backend.size(deletionName(backupId), call)) !== null;
}

async function readAnnouncement(
  context: RepositoryContext,
  name: string,
  call: CallOptions,
): Promise<OpenSession['announcement']> {
  try {
    const object = await getObject(context, name, ['session'], call);
    if (object === null) return null;
    const rules = { schema: announcementSchema, version: 1, bytesMax: objectBytesMax };
    return parseDocument(object.content, name, rules);
  } catch (error) {
    // Its name says all that a collection must know.
    if (error instanceof RepositoryError) return null;
    throw error;
  }
}
