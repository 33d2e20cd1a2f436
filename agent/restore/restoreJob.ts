import { readFile } from 'node:fs/promises';
import { type ErrorRecord, errorRecord, type StillpointError, messageOf } from '../../common/errors.ts';
import { exists } from '../../common/files.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { patiently } from '../hypervisor/patience.ts';
import { JobError } from '../jobs/errors.ts';
import type { JobDefinition, Settlement, StepContext } from '../jobs/step.ts';
import { RestoreError } from './errors.ts';
import { removeWorkDirectories } from '../snapshot/workFiles.ts';
import { hasRun, isInPlace, type Replacement, replacementsOf, type StagedMarks, takeOut } from './files.ts';
import { settledStatus, startAsHost, statusOf } from './machineStatus.ts';
import { settleInstant } from './instantRecovery.ts';
import { endServing } from './instantSteps.ts';
import { type RestoreFacts, restoreFactsSchema, type RestorePlan, safetyCopiesOf } from './plan.ts';
import { requireRestoredImages } from './restoredImages.ts';
import { giveAutostart, keptDefinitionFile, type RestoreDependencies, restoreSteps } from './restoreSteps.ts';

type Context = StepContext<RestoreFacts>;

/** The restore of one backup. One instance serves one run of one job. */
export function restoreJob(dependencies: RestoreDependencies): JobDefinition<RestoreFacts> {
  const { hypervisor } = dependencies;
  return {
    kind: 'restore',
    parse: (record) => restoreFactsSchema.parse(record),
    steps: (facts) => restoreSteps(dependencies, facts),
    outcome: outcomeOf,
    settle: (context, cause) => settleRestore(hypervisor, context, cause),
  };
}

/** An instant restore learns at its end whether the backup was as it was stored; its machine stays as it runs. */
function outcomeOf({ damage, plan }: RestoreFacts): {
  readonly state: 'finished' | 'failed';
  readonly error?: ErrorRecord;
} {
  if (damage === undefined) return { state: 'finished' };
  const error = new RestoreError(
    'BACKUP_DAMAGED',
    `${plan.machine.name} runs, but what it was started on may not be what was stored: ${damage}`,
    {
      hint: `restore another backup: stillpoint list ${plan.machine.name}; what was replaced is kept as ${safetyCopiesOf(plan).join(', ') || 'nothing'}`,
    },
  );
  return { state: 'failed', error: errorRecord(error) };
}

/**
 * After a failed step: puts back what was there before. After a crash: a restore that has touched something goes
 * on from where the files say it is, because the backup is still there and what it replaces is still kept; one
 * that has touched nothing is dropped.
 */
async function settleRestore(
  hypervisor: Hypervisor,
  context: Context,
  cause: StillpointError | undefined,
): Promise<Settlement> {
  if (context.facts.started && context.facts.plan.instant && !context.facts.local)
    return settleInstant(hypervisor, context, cause);
  // The restored machine runs: what is left is to clean up, never to take it away again.
  if (context.facts.started && cause !== undefined) return settleStarted(hypervisor, context, cause);
  if (cause !== undefined) return rollBack(hypervisor, context, errorRecord(cause), isCancel(cause));
  if (context.facts.error !== undefined) return rollBack(hypervisor, context, context.facts.error, false);
  const { facts } = context;
  if (context.cancelRequested && !facts.started) {
    return rollBack(
      hypervisor,
      context,
      errorRecord(new JobError('CANCELLED', 'the restore was cancelled')),
      true,
    );
  }
  if (facts.started) {
    await patiently('starting what the host would have', context, () => startAsHost(hypervisor, context));
    return { kind: 'continue', from: facts.plan.instant ? 'check' : 'cleanup' };
  }
  // Nothing was touched yet, and the machine may have gone on for hours: nobody has asked for that to be lost.
  if (!facts.stopping && facts.plan.kind !== 'files')
    return rollBack(hypervisor, context, interrupted(), false);
  if (facts.plan.kind === 'files') {
    const isThere = facts.swapped && (await areAll(facts.plan, (one) => isInPlace(one, marksOf(facts))));
    return isThere
      ? { kind: 'continue', from: 'cleanup' }
      : rollBack(hypervisor, context, interrupted(), false);
  }
  // A rollback that could not be written down (its disk was full): it must not go on as a restore.
  if (facts.staged !== undefined && !(await isAnyWorkLeft(facts.plan))) {
    // The directory that held them may be left, empty.
    await endServing(facts.plan);
    await removeWorkDirectories(facts.plan);
    return { kind: 'end', state: 'failed', error: interrupted() };
  }
  if (facts.staged) {
    const isOurs = await areAll(
      facts.plan,
      async (one) => (await exists(one.staged)) || isInPlace(one, marksOf(facts)),
    );
    if (!isOurs) return rollBack(hypervisor, context, interrupted(), false);
  }
  if (facts.swapping && !facts.starting && (await hasRun(facts.plan.volumes, marksOf(facts))))
    return patiently('looking at the machine', context, () => goOnAfterForeignRun(hypervisor, context));
  if (facts.starting)
    return patiently('going on after the start', context, () => goOnAfterStart(hypervisor, context));
  if (!facts.staged) return { kind: 'continue', from: 'stage' };
  return { kind: 'continue', from: facts.swapped ? 'define' : 'stop' };
}

/** What is left of a restore whose machine runs. */
async function settleStarted(
  hypervisor: Hypervisor,
  context: Context,
  cause: StillpointError,
): Promise<Settlement> {
  if (!(cause instanceof HypervisorError)) return { kind: 'park', error: errorRecord(cause) };
  await patiently('giving the machine its autostart', context, () => giveAutostart(hypervisor, context));
  return { kind: 'continue', from: context.facts.plan.instant ? 'check' : 'cleanup' };
}

function marksOf(facts: RestoreFacts): StagedMarks {
  return facts.stagedMarks ?? {};
}

async function areAll(
  plan: RestorePlan,
  is: (replacement: Replacement) => Promise<boolean>,
): Promise<boolean> {
  for (const replacement of replacementsOf(plan)) if (!(await is(replacement))) return false;
  return true;
}

async function isAnyWorkLeft(plan: RestorePlan): Promise<boolean> {
  for (const directory of plan.workDirectories) if (await exists(directory)) return true;
  return false;
}

/**
 * Somebody started the machine on restored disks while nobody worked on the job. Its memory state must never be
 * resumed on them any more: a machine that runs on all of them stays as it runs, otherwise they are copied again.
 */
async function goOnAfterForeignRun(hypervisor: Hypervisor, context: Context): Promise<Settlement> {
  const { plan } = context.facts;
  const status = await settledStatus(hypervisor, plan.machine.uuid);
  const isActive = status !== undefined && status.state !== 'shut-off' && status.state !== 'crashed';
  if (isActive && (await areAll(plan, (one) => isInPlace(one, marksOf(context.facts))))) {
    context.warn(`${plan.machine.name} was started on its restored disks meanwhile: it stays as it runs`);
    context.commit({ takenAsItRuns: true });
    return { kind: 'continue', from: 'define' };
  }
  return copyAgain(context);
}

/** Whatever ran on the restored disks is of no use to the memory state. */
async function copyAgain(context: Context): Promise<Settlement> {
  const { plan } = context.facts;
  // What replaced something is overwritten again; what is new must not be in its own way.
  for (const replacement of replacementsOf(plan))
    if (!replacement.existed) await takeOut(replacement, marksOf(context.facts));
  return { kind: 'continue', from: 'stage' };
}

/** The machine may have been started, and may have written: it is taken as it is, or restored once more. */
async function goOnAfterStart(hypervisor: Hypervisor, context: Context): Promise<Settlement> {
  const { plan } = context.facts;
  const status = await settledStatus(hypervisor, plan.machine.uuid);
  if (status === undefined || status.state === 'shut-off' || status.state === 'crashed') {
    if (plan.start === 'none') return { kind: 'continue', from: 'start' };
    return copyAgain(context);
  }
  if (status.state === 'paused' && (plan.runningAtPoint || plan.start === 'boot')) {
    if (plan.start === 'resume' || plan.instant) await requireRestoredImages(hypervisor, plan);
    await hypervisor.resume(plan.machine.uuid);
  }
  context.commit({ started: true });
  return { kind: 'continue', from: plan.instant ? 'pull' : 'cleanup' };
}

async function rollBack(
  hypervisor: Hypervisor,
  context: Context,
  error: ErrorRecord,
  cancelled: boolean,
): Promise<Settlement> {
  const { facts } = context;
  const { plan } = facts;
  // A rollback that is interrupted must go on as a rollback.
  context.commit({ error });
  try {
    if (facts.stopping)
      await patiently('putting the machine back', context, () => putMachineBack(hypervisor, context));
    else if (facts.swapping)
      for (const replacement of replacementsOf(plan)) await takeOut(replacement, marksOf(facts));
    await endServing(plan);
    await removeWorkDirectories(plan);
  } catch (cause) {
    throw new RestoreError(
      'CANNOT_PUT_BACK',
      `what was there before ${plan.machine.name} was restored cannot be put back: ${messageOf(cause)}`,
      {
        cause,
        hint: `it is kept in ${plan.workDirectories.join(', ')}; put right what is in the way, then: stillpoint job retry ${context.jobId}`,
      },
    );
  }
  return cancelled ? { kind: 'end', state: 'cancelled' } : { kind: 'end', state: 'failed', error };
}

async function putMachineBack(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { facts } = context;
  const { plan } = facts;
  const { uuid } = plan.machine;
  const status = await statusOf(hypervisor, uuid);
  const active = status !== undefined && status.state !== 'shut-off' && status.state !== 'crashed';
  // Without a restored image in place it runs on its own ones: an earlier attempt has started it again.
  const isAnyInPlace = !(await areAll(
    plan,
    async (replacement) => !(await isInPlace(replacement, marksOf(facts))),
  ));
  if (active && facts.swapping && isAnyInPlace) await hypervisor.powerOff(uuid);
  for (const replacement of replacementsOf(plan)) await takeOut(replacement, marksOf(facts));
  if (plan.present === null) {
    if (facts.defining && status !== undefined) await hypervisor.undefine(uuid);
    return;
  }
  const kept = keptDefinitionFile(plan);
  if (await exists(kept)) await hypervisor.define(await readFile(kept, 'utf8'));
  await hypervisor.setAutostart(uuid, plan.present.autostart);
  const now = await statusOf(hypervisor, uuid);
  if (plan.present.running && now?.state === 'shut-off') {
    context.warn(`${plan.machine.name} is started again as it was; what was in its memory is lost`);
    await hypervisor.start(uuid);
  }
}

function isCancel(cause: StillpointError): boolean {
  return cause instanceof JobError && cause.code === 'CANCELLED';
}

function interrupted(): ErrorRecord {
  return errorRecord(
    new JobError('AGENT_DIED', 'the agent that ran this job died; its work was undone', {
      hint: 'start the restore again',
      retryable: true,
    }),
  );
}
