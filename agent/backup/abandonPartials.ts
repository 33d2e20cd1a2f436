import { StillpointError } from '../../common/errors.ts';
import type { RepositoryErrorCode } from '../../storage/repository/errors.ts';
import type { Storage } from '../../storage/storage.ts';
import type { StepContext } from '../jobs/step.ts';

/** What is known of any backup job: whose it is and where it goes. */
interface AnyBackup {
  readonly backupId: string;
  readonly machine: { readonly uuid: string; readonly name: string };
  readonly settings: { readonly storages: readonly string[] };
}

/** Gives up what a job has gathered in its storages; a storage that is away keeps it, with a warning. */
export async function abandonPartials(
  storageOf: (name: string) => Storage,
  context: Pick<StepContext<AnyBackup>, 'jobId' | 'facts' | 'warn'>,
): Promise<void> {
  const { jobId, facts } = context;
  for (const name of facts.settings.storages) {
    try {
      const storage = storageOf(name);
      const begun = (await storage.partials()).some((partial) => partial.jobId === jobId);
      if (begun)
        await (await storage.begin({ jobId, backupId: facts.backupId, machine: facts.machine })).abandon();
    } catch (error) {
      if (!(error instanceof StillpointError)) throw error;
      // Nothing was gathered where there is nothing to gather it in.
      if (isRepositoryMissing(error)) continue;
      // The storage is away, or was taken out of the configuration: the job must be able to end all the same.
      context.warn(
        `whether something was gathered in storage ${name} cannot be seen; if so it stays there (doctor shows it): ${error.message}`,
      );
    }
  }
}

function isRepositoryMissing({ code }: StillpointError): boolean {
  const missing: RepositoryErrorCode = 'REPOSITORY_NOT_FOUND';
  return code === missing;
}
