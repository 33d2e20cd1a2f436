import { setTimeout as sleep } from 'node:timers/promises';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { errorRecord, type StillpointError } from '../../common/errors.ts';
import type { Storage } from '../../storage/storage.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { dropCheckpoint } from '../hypervisor/ourCheckpoints.ts';
import { patiently } from '../hypervisor/patience.ts';
import { JobError } from '../jobs/errors.ts';
import type { JobDefinition, Settlement, StepContext } from '../jobs/step.ts';
import { cannotThaw } from '../snapshot/freeze.ts';
import { endPullBackup, resumeAfterFull, standsStill } from '../snapshot/pullBackup.ts';
import { removeWorkDirectories } from '../snapshot/workFiles.ts';
import { abandonPartials } from './abandonPartials.ts';
import { canNeverBeStored } from './fencedBackup.ts';
import { isCancelTooLate } from './lateCancel.ts';
import { thawInRecovery } from './freezing.ts';
import { type ReadFacts, readFactsSchema } from './readFacts.ts';
import { type ReadStepDependencies, readSteps } from './readSteps.ts';
import { letGo } from './togetherBegin.ts';

type Context = StepContext<ReadFacts>;

/** libvirt begins a backup in some tenths of a second, where storage does not hang. */
const beginMs = 60_000;
const beginPollMs = 100;

/**
 * The backup of one machine in mode `disk` or `offline`: its volumes are read where they are, and nothing of the
 * machine is changed. One instance serves one run of one job.
 */
export function readJob(dependencies: ReadStepDependencies): JobDefinition<ReadFacts> {
  const steps = readSteps(dependencies);
  return {
    kind: 'backup',
    parse: (record) => readFactsSchema.parse(record),
    steps: () => steps,
    settle: (context, cause) => settleRead(dependencies, context, cause),
  };
}

/**
 * Brings the machine and the storages in order after a failed or cancelled step, or a crash. Once everything is
 * read T1 is safe, and the job is finished; before that T1 lives in QEMU, or in images that may have changed
 * meanwhile: nothing of it is kept.
 */
async function settleRead(
  dependencies: ReadStepDependencies & { readonly storage: (name: string) => Storage },
  context: Context,
  cause: StillpointError | undefined,
): Promise<Settlement> {
  const { facts } = context;
  const isTooLate =
    cause === undefined &&
    context.cancelRequested &&
    facts.retained !== undefined &&
    (await isCancelTooLate(dependencies.storage, context));
  const cancelled = !isTooLate && (isCancel(cause) || context.cancelRequested);
  // A machine that stands still comes before everything; nor can its agent thaw anything.
  await letGo(dependencies.hypervisor, context);
  const isLost = cancelled || canNeverBeStored(cause);
  if (facts.retained !== undefined && (facts.committed || !isLost)) {
    if (!(await endServing(dependencies.hypervisor, context, cause)))
      return waitFor(context, standsStill(facts.machine.name), cancelled);
    // A storage has to be put right first; what is read waits for it.
    if (cause !== undefined && !(cause instanceof HypervisorError))
      return { kind: 'park', error: errorRecord(cause) };
    return { kind: 'continue', from: facts.committed ? 'cleanup' : 'commit' };
  }
  // The guest comes first; but an agent that is gone can come back only when no backup is under way.
  await thawInRecovery(dependencies.hypervisor, context, 'once');
  const runs = await giveBack(dependencies, context, cause);
  const thawed = await thawInRecovery(dependencies.hypervisor, context, 'patiently');
  await abandonPartials(dependencies.storage, context);
  // Who cancels a job that waits for its guest takes the guest into his own hands.
  const isWell = (runs && thawed) || facts.waitsSince === 'before-cancel';
  if (cancelled && isWell) return { kind: 'end', state: 'cancelled' };
  const error = facts.givenUp ?? errorRecord(cause ?? agentDied());
  if (runs && thawed) return { kind: 'end', state: 'failed', error };
  context.commit({ givenUp: error });
  const { name } = facts.machine;
  return waitFor(context, thawed ? standsStill(name) : cannotThaw(name), cancelled);
}

/** The job holds its machine until the guest can run, or until somebody who knows of it cancels the job. */
function waitFor(context: Context, reason: StillpointError, cancelled: boolean): Settlement {
  const { waitsSince } = context.facts;
  if (waitsSince === undefined) context.commit({ waitsSince: cancelled ? 'after-cancel' : 'before-cancel' });
  return { kind: 'park', error: errorRecord(reason) };
}

/** A backup whose agent died while libvirt began it goes on to begin: what is not there yet cannot be ended. */
async function untilBegun(hypervisor: Hypervisor, uuid: string): Promise<void> {
  const deadline = performance.now() + beginMs;
  while (performance.now() < deadline) {
    const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === uuid);
    if (machine === undefined || machine.status.state === 'shut-off' || machine.status.state === 'crashed')
      return;
    if ((await hypervisor.currentBackup(uuid)) !== null) return;
    if ((await hypervisor.job(uuid)).kind === 'none') return;
    await sleep(beginPollMs);
  }
}

/**
 * Lets QEMU go, and takes away what stands beside the images. A guest that a full file system has stopped runs on.
 * @returns whether it does
 */
async function endServing(
  hypervisor: Hypervisor,
  context: Context,
  cause: StillpointError | undefined,
): Promise<boolean> {
  const { plan, begun, before } = context.facts;
  if (plan === undefined) return true;
  const { uuid, name } = plan.machine;
  if (begun === true)
    await patiently('ending the backup in QEMU', context, async () => {
      await untilBegun(hypervisor, uuid);
      await endPullBackup(hypervisor, plan);
    });
  let runs = true;
  try {
    // The guest may wait for the room that this takes.
    await removeWorkDirectories(plan);
  } finally {
    if (before?.running === true)
      await patiently('resuming the guest', context, async () => {
        const standing = await resumeAfterFull(hypervisor, uuid, cause?.code === 'SCRATCH_FULL');
        if (standing === 'runs-again')
          context.warn(`recovery: ${name} stood still for want of space, and runs on`);
        runs = standing !== 'stands-still';
      });
  }
  return runs;
}

/** Nothing of the job is left in QEMU or beside the images. @returns whether the guest runs on */
async function giveBack(
  { hypervisor }: ReadStepDependencies,
  context: Context,
  cause: StillpointError | undefined,
): Promise<boolean> {
  const { plan, settings } = context.facts;
  if (plan === undefined) return true;
  await context.point('before:undo');
  const runs = await endServing(hypervisor, context, cause);
  const { checkpoint } = plan;
  if (checkpoint !== null && context.facts.begun === true)
    await patiently('deleting the checkpoint', context, async () => {
      const left = await dropCheckpoint(hypervisor, plan.machine.uuid, checkpoint);
      if (left !== null)
        context.warn(`bitmaps ${checkpoint} may be left in the images of ${plan.machine.name}: ${left}`);
    });
  await rm(join(settings.runDirectory, context.jobId), { recursive: true, force: true });
  await context.point('after:undo');
  return runs;
}

function isCancel(cause: StillpointError | undefined): boolean {
  return cause instanceof JobError && cause.code === 'CANCELLED';
}

function agentDied(): JobError {
  return new JobError('AGENT_DIED', 'the agent that ran this job died before everything was read', {
    hint: 'the machine is as it was; start the backup again',
    retryable: true,
  });
}
