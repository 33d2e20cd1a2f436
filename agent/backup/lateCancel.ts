import { StillpointError } from '../../common/errors.ts';
import type { Storage } from '../../storage/storage.ts';
import type { StepContext } from '../jobs/step.ts';

/** What is known of any backup job: how it is called, and where it goes. */
interface AnyBackup {
  readonly backupId: string;
  readonly settings: { readonly storages: readonly string[] };
}

/**
 * Whether a job that is to be cancelled has been committed in one of its storages, by an agent that died before it could
 * say so. Then the others get it as well: it is a backup already. A storage that does not answer is not waited for.
 */
export async function isCancelTooLate(
  storageOf: (name: string) => Storage,
  { facts, warn }: Pick<StepContext<AnyBackup>, 'facts' | 'warn'>,
): Promise<boolean> {
  for (const name of facts.settings.storages) {
    try {
      if ((await storageOf(name).findCommitted(facts.backupId)) === null) continue;
      warn(`recovery: the cancel came too late: the backup is in storage ${name} already`);
      return true;
    } catch (error) {
      if (!(error instanceof StillpointError)) throw error;
    }
  }
  return false;
}
