import { stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isErrno } from '../../common/errors.ts';
import { freeBytes } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { asStillpointError } from '../jobs/stepErrors.ts';
import type { StepContext } from '../jobs/step.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import { takeLive } from '../snapshot/live.ts';
import type { LivePlan } from '../snapshot/livePlan.ts';
import { reserveBytes } from '../snapshot/scratchSpace.ts';
import type { Together } from '../snapshot/together.ts';
import { guarded } from './guarded.ts';
import type { LiveFacts } from './liveFacts.ts';
import { beginTogether } from './togetherBegin.ts';

const watchMs = 200;
/** A snapshot that is ended answers within this time. */
const endMs = 60_000;

type Context = StepContext<LiveFacts>;

/**
 * Takes memory and volumes of one machine of a group, whose vCPUs stand still until those of all are taken. A memory
 * that nobody changes is written once: there is nothing to converge.
 * @returns T1, the same for all, and how long this machine stood still
 * @throws SnapshotError GROUP_FAILED when another one cannot, CANNOT_SAVE_MACHINE_STATE, NOT_ENOUGH_DISK_SPACE,
 * MACHINE_STATE_UNSUITABLE, MACHINE_INTERFERED; the machine runs on in any case
 */
export async function takeTogether(
  hypervisor: Hypervisor,
  context: Context,
  plan: LivePlan,
  together: Together,
): Promise<{ readonly at: Date; readonly pauseMs: number | null }> {
  try {
    await together.meet('prepared', context.jobId, context.signal);
    const point = await beginTogether(hypervisor, context, together, () =>
      take(hypervisor, context, plan, together),
    );
    context.commit({ begunTogether: true });
    return point;
  } catch (error) {
    together.fail(plan.machine.name, asStillpointError(error));
    throw error;
  }
}

async function take(
  hypervisor: Hypervisor,
  context: Context,
  plan: LivePlan,
  together: Together,
): Promise<void> {
  const { name, uuid } = plan.machine;
  // After its memory was written QEMU lets nobody merge the images of a machine that stays suspended.
  if (context.facts.vcpusHeld !== true)
    throw new SnapshotError('MACHINE_STATE_UNSUITABLE', `${name} was suspended in the meantime`, {
      hint: `virsh resume ${name}, or leave it out`,
      retryable: true,
    });
  context.commit({ pointInTime: together.at.toISOString() });
  const { saveDeadlineMs } = context.facts.settings;
  const late = AbortSignal.timeout(saveDeadlineMs);
  try {
    await guarded(
      context,
      (signal) => watchRoom(plan, signal),
      (stopped) =>
        takeLive(hypervisor, plan, {
          deadlineMs: saveDeadlineMs + endMs,
          signal: AbortSignal.any([stopped, together.failure, late]),
        }),
    );
  } catch (error) {
    if (context.signal.aborted) throw error;
    // It was ended because another one failed: that is the reason.
    together.failure.throwIfAborted();
    if (late.aborted)
      throw new SnapshotError(
        'CANNOT_SAVE_MACHINE_STATE',
        `the memory of ${name} was not written within ${Math.round(saveDeadlineMs / 1000)} s`,
        { cause: error, hint: 'raise deadlines.saveSeconds in the policy, or write to a faster place' },
      );
    await endLostSnapshot(hypervisor, uuid, plan.stateFile);
    throw error;
  }
}

/**
 * The memories of several machines may go to one file system, and others run on it.
 * @throws SnapshotError NOT_ENOUGH_DISK_SPACE before it is full
 */
async function watchRoom(plan: LivePlan, signal: AbortSignal): Promise<void> {
  const reserve = await reserveBytes(plan.stateFile);
  while (!signal.aborted) {
    const free = await freeBytes(plan.stateFile);
    if (free < reserve)
      throw new SnapshotError(
        'NOT_ENOUGH_DISK_SPACE',
        `the file system of ${plan.stateFile} has only ${formatBytes(free)} left while the memories of the group are written`,
        { hint: 'make room there, or back fewer machines up together', retryable: true },
      );
    await sleep(watchMs, undefined, { signal }).catch(() => undefined);
  }
}

/** libvirt may still be at our snapshot when its answer was lost; until that ends the machine cannot be resumed. */
async function endLostSnapshot(hypervisor: Hypervisor, uuid: string, stateFile: string): Promise<void> {
  try {
    // The file has content only when our snapshot has the machine to itself.
    if ((await stat(stateFile)).size > 0 && (await hypervisor.job(uuid)).kind !== 'none')
      await hypervisor.abortJob(uuid);
  } catch (error) {
    // What failed before is the reason; the machine is let go with patience.
    if (!(error instanceof HypervisorError) && !isErrno(error, 'ENOENT')) throw error;
  }
}
