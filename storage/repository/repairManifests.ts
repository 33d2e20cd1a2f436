import { listAll } from '../backends/backend.ts';
import { backupLockedUntil } from './backupLock.ts';
import { deleteBackup, openAttempt, readAttempt } from './backups.ts';
import type { Problem } from './chunkIndex.ts';
import { findLostFences, isLost, lostFenceText } from './lostFences.ts';
import { type Attempt, attemptOf, manifestName, prefixes } from './names.ts';
import type { RepositoryContext } from './objects.ts';
import { fenceBackup } from './openSessions.ts';
import { readProtection } from './protections.ts';
import type { RepairOptions } from './repair.ts';
import type { RepairPlan } from './repairSteps.ts';
import { damageOf, keepAside } from './setAside.ts';

/**
 * Manifests: one that is damaged stops every collection, because it may refer to anything. Its bytes are kept aside,
 * and its backup is deleted as any other is, which a collection may meet at any moment.
 */
export async function planManifests(context: RepositoryContext, options: RepairOptions): Promise<RepairPlan> {
  const plan: RepairPlan = { steps: [], kept: [] };
  const listed = await listAll(context.backend, prefixes.manifests, options);
  const attempts = listed
    .map(({ name }) => attemptOf(name, prefixes.manifests))
    .filter((one) => one !== null);
  for (const [id, ofBackup] of Map.groupBy(attempts, ({ backupId }) => backupId)) {
    const lost = await lostBackup(context, ofBackup, options);
    if (lost === null) continue;
    const { name, reason } = lost;
    const act = async (): Promise<boolean> => setBackupAside(context, id, ofBackup, options);
    if (lost.stays === null) plan.steps.push({ action: 'set-aside', name, reason, act });
    else plan.kept.push({ name, reason: `${reason}; ${lost.stays}` });
  }
  return plan;
}

/**
 * Fences that are gone. Their backups are whole; but nothing keeps somebody who comes back late from committing the same
 * backup once more, and who asks for the attempts in turn may miss the one that counts.
 */
export async function planFences(context: RepositoryContext, options: RepairOptions): Promise<RepairPlan> {
  const lost = await findLostFences(context, options);
  const steps = lost.map((attempt) => ({
    action: 'fence' as const,
    name: nameOf(attempt),
    reason: lostFenceText(attempt),
    act: async (): Promise<boolean> =>
      (await isLost(context, attempt, options)) &&
      (await fenceBackup(context, attempt, options)) === 'fenced',
  }));
  return { steps, kept: [] };
}

async function setBackupAside(
  context: RepositoryContext,
  id: string,
  attempts: readonly Attempt[],
  options: RepairOptions,
): Promise<boolean> {
  // Once more: it may have taken hours to get here.
  const lost = await lostBackup(context, attempts, options);
  if (lost === null || lost.stays !== null) return false;
  for (const name of lost.damagedNames) await keepAside(context, name, options);
  await deleteBackup(context, id, options.at, options);
  return true;
}

/** A backup that cannot be read any more, by what stands in the place of its last attempt. */
interface LostBackup extends Problem {
  /** Of its attempts. */
  readonly damagedNames: readonly string[];
  /** Why it is not deleted. */
  readonly stays: string | null;
}

/**
 * A backup is lost when its last attempt is damaged: those before that can only have been fences, and count as such.
 *
 * @param attempts all that stand under `manifests/`
 */
async function lostBackup(
  context: RepositoryContext,
  attempts: readonly Attempt[],
  options: RepairOptions,
): Promise<LostBackup | null> {
  const [last, ...earlier] = attempts.toSorted((one, other) => other.attempt - one.attempt);
  if (last === undefined) return null;
  const reason = await damageOf(async () => readAttempt(context, last, options));
  if (reason === null) return null;
  const damagedNames = [nameOf(last)];
  let stays: string | null = null;
  for (const attempt of earlier) {
    const kind = await kindOf(context, attempt, options);
    if (kind === 'damaged') damagedNames.push(nameOf(attempt));
    if (kind === 'other')
      stays = `${nameOf(attempt)} is no fence: look at it with stillpoint verify ${attempt.backupId}, which delete removes whole`;
  }
  const id = last.backupId;
  if ((await readProtection(context, id, options)) !== null)
    stays = `it is protected: collections stay stopped until stillpoint protect ${id} --off and another repair`;
  const lockedUntil = await backupLockedUntil(context, id, options);
  if (lockedUntil !== null)
    stays = `it is locked until ${lockedUntil.toISOString()}: collections stay stopped until then`;
  return { name: nameOf(last), reason, damagedNames, stays };
}

/** `other`: a manifest, or what a newer version wrote. Only who knows all that is there may delete it. */
async function kindOf(
  context: RepositoryContext,
  attempt: Attempt,
  options: RepairOptions,
): Promise<'fence' | 'damaged' | 'other'> {
  let kind: 'fence' | 'other' = 'other';
  const reason = await damageOf(async () => {
    const found = await openAttempt(context, attempt, options);
    if (found === 'fenced' || found === null) kind = 'fence';
  });
  return reason === null ? kind : 'damaged';
}

function nameOf({ backupId, attempt }: Attempt): string {
  return manifestName(backupId, attempt);
}
