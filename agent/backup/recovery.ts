import { setTimeout as sleep } from 'node:timers/promises';
import { type ErrorRecord, errorRecord, type StillpointError } from '../../common/errors.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { beforeNextAttempt, patiently } from '../hypervisor/patience.ts';
import { currentBootId } from '../jobs/owner.ts';
import { JobError } from '../jobs/errors.ts';
import type { Settlement, StepContext } from '../jobs/step.ts';
import { MergeError } from '../merge/errors.ts';
import { flushVolumes } from '../merge/flush.ts';
import { putFrozenUnder } from '../merge/offline.ts';
import { requireExpectedChains } from '../snapshot/chain.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import { restorePaused } from '../snapshot/save.ts';
import { stateFileBirth } from '../snapshot/stateFile.ts';
import { giveBackOwners, putImageBack, swapImages } from '../snapshot/workFiles.ts';
import { assertNever } from '../../common/errors.ts';
import { decideRepair, type Repair } from './decide.ts';
import { describeRepair } from './describeRepair.ts';
import type { BackupFacts } from './facts.ts';
import { dropOwnCheckpoint, giveAutostartBack, removeWork } from './laterSteps.ts';
import { removeUnusedWork } from './lettingGo.ts';
import { beforeOf, planOf } from './saveSteps.ts';
import { canNeverBeStored } from './fencedBackup.ts';
import { observe, type World } from './world.ts';

/** How long recovery waits for libvirt to finish what it is doing, or to answer at all. */
const waitDeadlineMs = 15 * 60_000;
const waitPollMs = 250;
/** No recovery needs this many repairs; more of them go in a circle. */
const repairsMax = 40;
/** A machine that goes down so often during its merge is left alone with it. */
const mergeStopsMax = 2;

export interface RecoveryDependencies {
  readonly hypervisor: Hypervisor;
  /** Gives up what a job has gathered in its storages. */
  readonly abandonPartials: (context: StepContext<BackupFacts>) => Promise<void>;
  /** Whether it is a backup already, in one of its storages. */
  readonly isCancelTooLate: (context: StepContext<BackupFacts>) => Promise<boolean>;
}

type Context = StepContext<BackupFacts>;

/**
 * Brings the machine of a backup job in order after a failed or cancelled step, or a crash, and tells how the
 * job goes on. Looks at the world, does one repair, looks again, until nothing is left to repair.
 */
export async function settleBackup(
  dependencies: RecoveryDependencies,
  context: Context,
  cause: StillpointError | undefined,
): Promise<Settlement> {
  const { hypervisor } = dependencies;
  const attempts = new Map<Repair['kind'], number>();
  const mergeIncomplete = cause instanceof MergeError && cause.code === 'MERGE_INCOMPLETE';
  const waitDeadline = performance.now() + waitDeadlineMs;
  for (let repairs = 0; repairs < repairsMax; repairs += 1) {
    const world = await observeWhenPossible(hypervisor, context);
    const rebooted = context.facts.bootId !== currentBootId();
    const repair = decideRepair(context.facts, world ?? emptyWorld, { attempts, rebooted, mergeIncomplete });
    if (repair.kind === 'wait' && performance.now() < waitDeadline) {
      if (isOurSave(world)) await endSave(hypervisor, context, attempts);
      await sleep(waitPollMs);
      repairs -= 1;
      continue;
    }
    // A backup that was refused has nothing to be recovered from.
    if (context.facts.plan !== undefined) context.warn(`recovery: ${describeRepair(repair)}`);
    await context.point(`before:${repair.kind}`);
    switch (repair.kind) {
      case 'wait':
        return {
          kind: 'park',
          error: parked(context.facts, 'libvirt does not finish what it does with it', cause),
        };
      case 'undo':
        return undo(dependencies, context, cause);
      case 'go-on':
        return goOn(dependencies, context, cause, { ...repair, world: world ?? emptyWorld });
      case 'let-go':
        return letGo(hypervisor, context, repair.why);
      case 'park':
        return {
          kind: 'park',
          error: {
            ...parked(context.facts, repair.why, cause),
            ...(repair.code === undefined ? {} : { code: repair.code }),
          },
        };
      default:
        await actPatiently(hypervisor, context, repair, attempts);
    }
    await context.point(`after:${repair.kind}`);
  }
  return { kind: 'park', error: parked(context.facts, 'its repair does not come to an end', cause) };
}

const emptyWorld: World = {
  machine: 'gone',
  status: { state: 'no-state', reason: 'unknown' },
  runId: undefined,
  busy: false,
  state: 'absent',
  volumes: [],
};

/** Waits for libvirt to answer; a job without a plan has touched nothing and needs no look. */
async function observeWhenPossible(hypervisor: Hypervisor, context: Context): Promise<World | undefined> {
  if (context.facts.plan === undefined) return undefined;
  const deadline = performance.now() + waitDeadlineMs;
  for (let failures = 0; ; failures += 1) {
    try {
      return await observe(hypervisor, context.facts);
    } catch (error) {
      if (!(error instanceof HypervisorError) || performance.now() > deadline) throw error;
      if (failures === 0)
        context.warn(`recovery: libvirt cannot be asked yet, waiting for it: ${error.message}`);
      await sleep(waitPollMs);
    }
  }
}

/**
 * libvirt goes on with a save whose client died; nobody would bring the machine back. Aborted, it runs on at
 * once. Asked once; a save that cannot be aborted any more is waited for.
 */
async function endSave(
  hypervisor: Hypervisor,
  context: Context,
  attempts: Map<Repair['kind'], number>,
): Promise<void> {
  if (!attempts.has('wait')) {
    attempts.set('wait', 1);
    try {
      await hypervisor.abortJob(planOf(context.facts).machine.uuid);
    } catch (error) {
      if (!(error instanceof HypervisorError)) throw error;
      context.warn(`recovery: libvirt's job cannot be aborted: ${error.message}`);
    }
  }
}

/** A save into our own state file; a migration, a dump or a backup of somebody else is not ours to end. */
function isOurSave(world: World | undefined): boolean {
  return world?.status.state === 'paused' && world.status.reason === 'saving' && world.state === 'partial';
}

/** libvirt may fail or go away in the middle of a repair: look again, and do what is needed then. */
async function actPatiently(
  hypervisor: Hypervisor,
  context: Context,
  repair: Parameters<typeof act>[2],
  attempts: Map<Repair['kind'], number>,
): Promise<void> {
  try {
    await act(hypervisor, context, repair, attempts);
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error;
    const failed = (attempts.get(repair.kind) ?? 0) + 1;
    attempts.set(repair.kind, failed);
    context.warn(`recovery: ${repair.kind} failed (attempt ${failed}): ${error.message}`);
    await beforeNextAttempt(failed);
  }
}

/** Does one repair. A restore or start that fails is counted: the decision then takes the next way. */
async function act(
  hypervisor: Hypervisor,
  context: Context,
  repair: Exclude<Repair, { readonly kind: 'wait' | 'undo' | 'go-on' | 'let-go' | 'park' }>,
  attempts: Map<Repair['kind'], number>,
): Promise<void> {
  const plan = planOf(context.facts);
  const { uuid } = plan.machine;
  switch (repair.kind) {
    case 'resume':
      return tryToResume(hypervisor, context, attempts);
    case 'power-off':
      context.commit({ poweredOff: true });
      return hypervisor.powerOff(uuid);
    case 'put-back':
      for (const volume of plan.volumes) await putImageBack(volume);
      return;
    case 'put-frozen-under':
      for (const volume of plan.volumes) await putFrozenUnder(volume);
      return;
    case 'finish-swap':
    case 'restore-original':
    case 'restore-swapped':
    case 'start-cold':
      return tryToBringBack(repair.kind, hypervisor, context, attempts);
    default:
      return assertNever(repair);
  }
}

/** A machine that pauses again, for want of space or because its image is locked, is given time between. */
async function tryToResume(
  hypervisor: Hypervisor,
  context: Context,
  attempts: Map<Repair['kind'], number>,
): Promise<void> {
  const tried = (attempts.get('resume') ?? 0) + 1;
  attempts.set('resume', tried);
  if (tried > 1) await beforeNextAttempt(tried - 1);
  try {
    await hypervisor.resume(planOf(context.facts).machine.uuid);
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error;
    context.warn(`recovery: resume failed (attempt ${tried}): ${error.message}`);
    return;
  }
  context.commit({ vcpusHeld: false });
}

async function tryToBringBack(
  kind: 'finish-swap' | 'restore-original' | 'restore-swapped' | 'start-cold',
  hypervisor: Hypervisor,
  context: Context,
  attempts: Map<Repair['kind'], number>,
): Promise<void> {
  const tried = (attempts.get(kind) ?? 0) + 1;
  attempts.set(kind, tried);
  await giveBackOwners(planOf(context.facts));
  try {
    if (kind === 'finish-swap') await swapImages(planOf(context.facts));
    else if (kind === 'restore-original') await restoreOriginal(hypervisor, context);
    else if (kind === 'restore-swapped') await restoreSwapped(hypervisor, context);
    else await startCold(hypervisor, context);
  } catch (error) {
    if (!(error instanceof SnapshotError || error instanceof HypervisorError)) throw error;
    context.warn(`recovery: ${kind} failed (attempt ${tried}): ${error.message}`);
    await beforeNextAttempt(tried);
  }
}

async function restoreOriginal(hypervisor: Hypervisor, context: Context): Promise<void> {
  const plan = planOf(context.facts);
  context.commit({ vcpusHeld: true });
  await hypervisor.restoreState({
    file: plan.stateFile,
    paused: true,
    deadlineMs: context.facts.settings.restoreDeadlineMs,
  });
  // From here the guest may run: its state must not be taken a second time.
  context.commit({ resuming: true });
  if (beforeOf(context.facts).running) await hypervisor.resume(plan.machine.uuid);
  context.commit({ vcpusHeld: false, poweredOff: false });
}

async function restoreSwapped(hypervisor: Hypervisor, context: Context): Promise<void> {
  const plan = planOf(context.facts);
  context.commit({ vcpusHeld: true });
  await restorePaused(hypervisor, plan, context.facts.settings.restoreDeadlineMs);
  context.commit({ resuming: true });
  if (beforeOf(context.facts).running) await hypervisor.resume(plan.machine.uuid);
  context.commit({ vcpusHeld: false, poweredOff: false });
}

/** Starts with the vCPUs stopped, so that a chain that libvirt would cut is seen before the guest sees it. */
async function startCold(hypervisor: Hypervisor, context: Context): Promise<void> {
  const plan = planOf(context.facts);
  const { uuid } = plan.machine;
  const world = await observe(hypervisor, context.facts);
  context.commit({ vcpusHeld: true, resuming: true });
  await hypervisor.start(uuid, { paused: true });
  const onFrozen = plan.volumes.filter((volume) =>
    world.volumes.some((seen) => seen.target === volume.target && seen.header === 'on-frozen'),
  );
  try {
    await requireExpectedChains(hypervisor, uuid, onFrozen);
  } catch (error) {
    context.commit({ poweredOff: true });
    await hypervisor.powerOff(uuid);
    throw error;
  }
  await hypervisor.resume(uuid);
  context.commit({ vcpusHeld: false, poweredOff: false });
}

/** Nothing of the backup is left: the machine is on its own image, and the job ends. */
async function undo(
  dependencies: RecoveryDependencies,
  context: Context,
  cause: StillpointError | undefined,
): Promise<Settlement> {
  const { plan, before } = context.facts;
  if (plan !== undefined && before !== undefined) {
    await patiently('giving autostart back', context, () =>
      giveAutostartBack(dependencies.hypervisor, context.facts),
    );
  }
  if (plan !== undefined) context.commit({ undoing: true });
  // Storages get nothing before the merge is flushed: one that does not answer is no obstacle here.
  await dropOwnCheckpoint(dependencies.hypervisor, context);
  if (plan !== undefined) await removeWork(plan);
  if (isCancel(cause) || (cause === undefined && context.cancelRequested))
    return { kind: 'end', state: 'cancelled' };
  return { kind: 'end', state: 'failed', error: errorRecord(cause ?? agentDied()) };
}

/** Ends the job without touching what the machine stands on now. */
async function letGo(hypervisor: Hypervisor, context: Context, why: string): Promise<Settlement> {
  const plan = planOf(context.facts);
  context.commit({ letGo: why });
  await patiently('giving autostart back', context, () => giveAutostartBack(hypervisor, context.facts));
  await dropOwnCheckpoint(hypervisor, context);
  const kept = await patiently('looking what is in use', context, () => removeUnusedWork(hypervisor, plan));
  const { name } = plan.machine;
  const left = kept.length === 0 ? '' : `; in use, and left where they are: ${kept.join(', ')}`;
  const error = new SnapshotError(
    'MACHINE_INTERFERED',
    `${why}, by a snapshot or a block job of its owner, and its backup was given up${left}`,
    {
      hint:
        kept.length === 0
          ? 'start the backup again'
          : `virsh domblklist ${name} shows what it runs on; when it is off, move the image to where it belongs and change the definition (virsh edit ${name}); then back it up again`,
      retryable: true,
    },
  );
  return { kind: 'end', state: 'failed', error: errorRecord(error) };
}

type GoOn = Extract<Repair, { readonly kind: 'go-on' }> & { readonly world: World };

/** The machine is safe: finish the backup, or (given up) only the merge. */
async function goOn(
  dependencies: RecoveryDependencies,
  context: Context,
  cause: StillpointError | undefined,
  repair: GoOn,
): Promise<Settlement> {
  const { facts } = context;
  // Not when a storage refuses it since: nobody may be kept from giving it up.
  const isTooLate =
    cause === undefined &&
    context.cancelRequested &&
    facts.givenUp === undefined &&
    facts.flushed === true &&
    (await dependencies.isCancelTooLate(context));
  const cancelled = !isTooLate && (isCancel(cause) || context.cancelRequested);
  if (facts.givenUp === undefined && !facts.committed) {
    if (cancelled) {
      context.commit({ givenUp: { cancelled: true, error: errorRecord(cause ?? agentDied()) } });
    } else if (
      !repair.valid ||
      canNeverBeStored(cause) ||
      (facts.flushed && cause instanceof SnapshotError)
    ) {
      context.commit({ givenUp: { cancelled: false, error: errorRecord(cause ?? memoryLost()) } });
    }
  }
  if (repair.valid && facts.pointInTime === undefined) {
    // libvirt made the file just after it had stopped the vCPUs; the event itself was not heard.
    context.commit({ pointInTime: (await stateFileBirth(planOf(facts).stateFile)).toISOString() });
  }
  if (repair.valid) context.commit({ frozenPoint: true });
  if (context.facts.givenUp !== undefined && facts.flushed) await dependencies.abandonPartials(context);
  const stops = countStops(context, cause);
  if (cause !== undefined && (stops >= mergeStopsMax || (!cancelled && mustPark(cause)))) {
    await patiently('leaving the machine parked', context, () =>
      makeParkable(dependencies.hypervisor, context, repair),
    );
    return {
      kind: 'park',
      error: stops >= mergeStopsMax ? mergeStopsMachine(facts, cause) : errorRecord(cause),
    };
  }
  // A step that can be cancelled would be.
  return { kind: 'continue', from: isTooLate && repair.from === 'unguard' ? 'commit' : repair.from };
}

/** A merge that makes QEMU crash must not be tried on the running machine again and again. */
function countStops(context: Context, cause: StillpointError | undefined): number {
  const before = context.facts.mergeStops ?? 0;
  if (!(cause instanceof MergeError) || cause.code !== 'MACHINE_STOPPED') return 0;
  context.commit({ mergeStops: before + 1 });
  return before + 1;
}

function mergeStopsMachine(facts: BackupFacts, cause: StillpointError): ErrorRecord {
  return {
    code: cause.code,
    message: `${facts.machine.name} went down ${mergeStopsMax} times during its merge, and was started again: ${cause.message}`,
    hint: `look at /var/log/libvirt/qemu/${facts.machine.name}.log; the merge works without QEMU too: virsh shutdown ${facts.machine.name}, then: stillpoint job retry <id>, then start it`,
    retryable: true,
  };
}

/** What needs somebody to make room, or to change something, before it can go on. */
function mustPark(cause: StillpointError): boolean {
  if (cause instanceof HypervisorError || cause instanceof SnapshotError) return false;
  if (canNeverBeStored(cause)) return false;
  if (cause instanceof JobError && cause.code === 'AGENT_STOPPED') return false;
  return (
    !(cause instanceof MergeError) || (cause.code !== 'MACHINE_STOPPED' && cause.code !== 'MERGE_INCOMPLETE')
  );
}

/**
 * A parked job may stay for days, and the machine may stop and start meanwhile. What was pulled so far is made
 * durable; autostart is given back where every image is either untouched by the merge or durable, because
 * booting it is harmless then.
 */
async function makeParkable(hypervisor: Hypervisor, context: Context, repair: GoOn): Promise<void> {
  const plan = planOf(context.facts);
  const halfMerged =
    context.facts.flushed !== true && repair.world.volumes.some((volume) => volume.header === 'merged');
  if (halfMerged && repair.world.machine === 'active') {
    await flushVolumes(hypervisor, plan, (vcpusHeld) => context.commit({ vcpusHeld }));
  }
  if (halfMerged) return;
  await giveAutostartBack(hypervisor, context.facts);
  context.commit({ guardReleased: true });
}

function isCancel(cause: StillpointError | undefined): boolean {
  return cause instanceof JobError && cause.code === 'CANCELLED';
}

function agentDied(): JobError {
  return new JobError('AGENT_DIED', 'the agent that ran this job died; its work was undone', {
    hint: 'the machine is as it was; start the backup again',
    retryable: true,
  });
}

function memoryLost(): SnapshotError {
  return new SnapshotError(
    'MACHINE_INTERFERED',
    'the point in time was lost: the machine or its memory state is not what the job left',
    {
      hint: 'the machine is complete and runs on one image again; start the backup again',
      retryable: true,
    },
  );
}

function parked(facts: BackupFacts, why: string, cause: StillpointError | undefined): ErrorRecord {
  return {
    code: cause?.code ?? 'CANNOT_RESTORE_MACHINE',
    message: `${facts.machine.name} needs you: ${why}${cause === undefined ? '' : ` (${cause.message})`}`,
    hint: 'put that right, then: stillpoint job retry <id>; what the job did: stillpoint job show <id>',
    retryable: true,
  };
}
