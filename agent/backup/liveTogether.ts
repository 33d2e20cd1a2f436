import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { asStillpointError } from '../jobs/engine.ts';
import type { StepContext } from '../jobs/step.ts';
import { takeLive } from '../snapshot/live.ts';
import type { LivePlan } from '../snapshot/livePlan.ts';
import type { Together } from '../snapshot/together.ts';
import type { LiveFacts } from './liveFacts.ts';
import { beginTogether } from './togetherBegin.ts';

/**
 * Takes memory and volumes of one machine of a group, whose vCPUs stand still until those of all are taken. A memory
 * that nobody changes is written once: there is nothing to converge.
 * @returns T1, the same for all, and how long this machine stood still
 * @throws SnapshotError GROUP_FAILED when another one cannot, CANNOT_SAVE_MACHINE_STATE; the machine runs on in any case
 */
export async function takeTogether(
  hypervisor: Hypervisor,
  context: StepContext<LiveFacts>,
  plan: LivePlan,
  together: Together,
): Promise<{ readonly at: Date; readonly pauseMs: number | null }> {
  const { saveDeadlineMs: deadlineMs } = context.facts.settings;
  const signal = AbortSignal.any([context.signal, together.failure]);
  try {
    await together.meet('prepared', context.jobId, context.signal);
    return await beginTogether(hypervisor, context, together, async () => {
      context.commit({ pointInTime: together.at.toISOString() });
      try {
        await takeLive(hypervisor, plan, { deadlineMs, signal });
      } catch (error) {
        // It was ended because another one failed: that is the reason.
        if (!context.signal.aborted) together.failure.throwIfAborted();
        throw error;
      }
    });
  } catch (error) {
    together.fail(plan.machine.name, asStillpointError(error));
    throw error;
  }
}
