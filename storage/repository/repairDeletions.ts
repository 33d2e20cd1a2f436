import { untimelyDeletions } from './backupLock.ts';
import type { RepositoryContext } from './objects.ts';
import type { RepairOptions } from './repair.ts';
import type { RepairPlan } from './repairSteps.ts';
import { keepAside } from './setAside.ts';

/**
 * Deletions of backups that are locked. Whoever made them may have locked them, too: then nobody can delete them, but
 * anybody can hide them, which is enough for the backup to exist again.
 */
export async function planDeletions(context: RepositoryContext, options: RepairOptions): Promise<RepairPlan> {
  const found = await untimelyDeletions(context, options);
  const steps = found.map(({ name, backupId, lockedUntil }) => ({
    action: 'set-aside' as const,
    name,
    reason: `backup ${backupId} is locked until ${lockedUntil.toISOString()}, and was not to be deleted before`,
    act: async (): Promise<boolean> => {
      await keepAside(context, name, options);
      await context.lock?.objectLock.hide(name, options);
      return true;
    },
  }));
  return { steps, kept: [] };
}
