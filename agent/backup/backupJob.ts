import { StillpointError } from '../../common/errors.ts';
import type { JobDefinition, Step, StepContext } from '../jobs/step.ts';
import { planOf, type SaveStepDependencies, saveSteps } from './saveSteps.ts';
import { type BackupFacts, backupFactsSchema } from './facts.ts';
import { type LaterStepDependencies, mergeSteps, removeWork, retainSteps } from './laterSteps.ts';
import { settleBackup } from './recovery.ts';

export type BackupDependencies = SaveStepDependencies & LaterStepDependencies;

/**
 * The backup of one machine, from request to manifest: `snapshot` makes T1, `merge` brings the machine back to
 * one image, `retain` puts the artifacts into the storages. One instance serves one run of one job.
 */
export function backupJob(dependencies: BackupDependencies): JobDefinition<BackupFacts> {
  const snapshot = saveSteps(dependencies);
  const merge = mergeSteps(dependencies);
  const retain = retainSteps(dependencies);
  const drop: Step<BackupFacts> = {
    name: 'drop',
    state: 'merged',
    cancellable: false,
    act: (context) => removeWork(planOf(context.facts)),
  };
  const abandonPartials = async (context: StepContext<BackupFacts>): Promise<void> => {
    const { jobId, facts } = context;
    for (const name of facts.settings.storages) {
      try {
        const storage = dependencies.storage(name);
        const begun = (await storage.partials()).some((partial) => partial.jobId === jobId);
        if (begun) await (await storage.begin({ jobId, machine: facts.machine })).abandon();
      } catch (error) {
        if (!(error instanceof StillpointError)) throw error;
        // The storage is away, or was taken out of the configuration: the job must be able to end all the same.
        context.warn(`what was gathered in storage ${name} stays there (doctor shows it): ${error.message}`);
      }
    }
  };
  return {
    kind: 'backup',
    parse: (record) => backupFactsSchema.parse(record),
    steps: (facts) => [...snapshot.steps, ...merge, ...(facts.givenUp === undefined ? retain : [drop])],
    outcome: ({ givenUp }) =>
      givenUp === undefined
        ? { state: 'finished' }
        : {
            state: givenUp.cancelled ? 'cancelled' : 'failed',
            error: givenUp.cancelled ? undefined : givenUp.error,
          },
    settle: async (context, cause) => {
      await snapshot.close();
      return settleBackup({ hypervisor: dependencies.hypervisor, abandonPartials }, context, cause);
    },
  };
}
