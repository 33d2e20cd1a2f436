import type { JobDefinition } from '../jobs/step.ts';
import { abandonPartials } from './abandonPartials.ts';
import { isCancelTooLate } from './lateCancel.ts';
import { type LiveFacts, liveFactsSchema } from './liveFacts.ts';
import { settleLive } from './liveRecovery.ts';
import {
  liveCommitSteps,
  liveDropStep,
  liveMergeSteps,
  liveRetainStep,
  liveSnapshotSteps,
  type LiveStepDependencies,
} from './liveSteps.ts';

/**
 * The backup of one machine in mode `live`: T1 is taken while it runs on, its frozen images are put into the
 * storages, and what it wrote meanwhile is merged back into them. One instance serves one run of one job.
 */
export function liveJob(dependencies: LiveStepDependencies): JobDefinition<LiveFacts> {
  const snapshot = liveSnapshotSteps(dependencies);
  const retain = liveRetainStep(dependencies);
  const merge = liveMergeSteps(dependencies);
  const commit = liveCommitSteps(dependencies);
  return {
    kind: 'backup',
    parse: (record) => liveFactsSchema.parse(record),
    steps: (facts) => [
      ...snapshot,
      retain,
      ...merge,
      ...(facts.givenUp === undefined ? commit : [liveDropStep(dependencies)]),
    ],
    outcome: ({ givenUp }) => {
      if (givenUp === undefined) return { state: 'finished' };
      return givenUp.cancelled ? { state: 'cancelled' } : { state: 'failed', error: givenUp.error };
    },
    settle: (context, cause) => {
      const { hypervisor, storage } = dependencies;
      return settleLive(
        {
          hypervisor,
          abandonPartials: (given) => abandonPartials(storage, given),
          isCancelTooLate: (given) => isCancelTooLate(storage, given),
        },
        context,
        cause,
      );
    },
  };
}
