import type { JobDefinition, Step } from '../jobs/step.ts';
import { abandonPartials } from './abandonPartials.ts';
import { planOf, type SaveStepDependencies, saveSteps } from './saveSteps.ts';
import { type BackupFacts, backupFactsSchema } from './facts.ts';
import { isCancelTooLate } from './lateCancel.ts';
import {
  dropOwnCheckpoint,
  type LaterStepDependencies,
  mergeSteps,
  removeSockets,
  removeWork,
  retainSteps,
} from './laterSteps.ts';
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
    act: async (context) => {
      await dropOwnCheckpoint(dependencies.hypervisor, context);
      await removeSockets(context);
      await removeWork(planOf(context.facts));
    },
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
      const { hypervisor, storage } = dependencies;
      const abandon = (given: typeof context): Promise<void> => abandonPartials(storage, given);
      const isTooLate = (given: typeof context): Promise<boolean> => isCancelTooLate(storage, given);
      return settleBackup(
        { hypervisor, abandonPartials: abandon, isCancelTooLate: isTooLate },
        context,
        cause,
      );
    },
  };
}
