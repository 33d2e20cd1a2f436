import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  assertNever,
  type ErrorRecord,
  errorRecord,
  isErrno,
  type StillpointError,
} from '../../common/errors.ts';
import { exists } from '../../common/files.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { beforeNextAttempt } from '../hypervisor/patience.ts';
import { JobError } from '../jobs/errors.ts';
import { currentBootId } from '../jobs/owner.ts';
import type { Settlement, StepContext } from '../jobs/step.ts';
import { nameImages } from '../merge/commit.ts';
import { MergeError } from '../merge/errors.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import { ownQemu } from '../snapshot/imageUsers.ts';
import { decideLive, type LiveRepair } from './liveDecide.ts';
import { type LiveFacts, livePlanOf } from './liveFacts.ts';
import { dropOwnCheckpoint, removeLiveWork } from './liveSteps.ts';
import { type LiveWorld, observeLive } from './liveWorld.ts';
import { canNeverBeStored } from './fencedBackup.ts';
import { resumeHeld } from './togetherBegin.ts';

/** How long recovery waits for libvirt to finish what it is doing, or to answer at all. */
const waitDeadlineMs = 15 * 60_000;
const waitPollMs = 250;
/** No recovery needs this many repairs; more of them go in a circle. */
const repairsMax = 40;
/** A machine that goes down so often during its merge is left alone with it. */
const mergeStopsMax = 2;
/** QEMU closes its images within this time after SIGTERM. */
const endQemuMs = 15_000;

export interface LiveRecoveryDependencies {
  readonly hypervisor: Hypervisor;
  /** Gives up what a job has gathered in its storages. */
  readonly abandonPartials: (context: StepContext<LiveFacts>) => Promise<void>;
  /** Whether it is a backup already, in one of its storages. */
  readonly isCancelTooLate: (context: StepContext<LiveFacts>) => Promise<boolean>;
}

type Context = StepContext<LiveFacts>;

/**
 * Brings the machine of a `live` backup in order after a failed or cancelled step, or a crash, and tells how the job
 * goes on. Looks at the world, does one repair, looks again, until nothing is left to repair.
 */
export async function settleLive(
  dependencies: LiveRecoveryDependencies,
  context: Context,
  cause: StillpointError | undefined,
): Promise<Settlement> {
  const { hypervisor } = dependencies;
  const attempts = new Map<LiveRepair['kind'], number>();
  const waitDeadline = performance.now() + waitDeadlineMs;
  for (let repairs = 0; repairs < repairsMax; repairs += 1) {
    const world = await observeWhenPossible(hypervisor, context);
    const rebooted = context.facts.bootId !== currentBootId();
    const repair = decideLive(context.facts, world, { attempts, rebooted });
    if (repair.kind === 'wait' && performance.now() < waitDeadline) {
      await sleep(waitPollMs);
      repairs -= 1;
      continue;
    }
    // A backup that was refused has nothing to be recovered from.
    if (context.facts.plan !== undefined) context.warn(`recovery: ${describeLiveRepair(repair)}`);
    await context.point(`before:${repair.kind}`);
    const settlement = await settleBy(dependencies, context, cause, repair, attempts);
    if (settlement !== undefined) return settlement;
    await context.point(`after:${repair.kind}`);
  }
  return park(context, cause, 'its repair does not come to an end');
}

/** Does what was decided; a settlement when that was the last thing. */
async function settleBy(
  dependencies: LiveRecoveryDependencies,
  context: Context,
  cause: StillpointError | undefined,
  repair: LiveRepair,
  attempts: Map<LiveRepair['kind'], number>,
): Promise<Settlement | undefined> {
  switch (repair.kind) {
    case 'wait':
      return park(context, cause, 'libvirt does not finish what it does with it');
    case 'undo':
      return undo(dependencies, context, cause);
    case 'go-on':
      return goOn(dependencies, context, cause, repair);
    case 'park':
      return park(context, cause, repair.why, repair.code);
    default: {
      const tried = (attempts.get(repair.kind) ?? 0) + 1;
      attempts.set(repair.kind, tried);
      try {
        await act(dependencies.hypervisor, context, repair);
      } catch (error) {
        // libvirt may fail or go away in the middle of a repair: look again, and do what is needed then.
        if (!(error instanceof HypervisorError)) throw error;
        context.warn(`recovery: ${repair.kind} failed (attempt ${tried}): ${error.message}`);
        await beforeNextAttempt(tried);
      }
      return undefined;
    }
  }
}

async function act(
  hypervisor: Hypervisor,
  context: Context,
  repair: Exclude<LiveRepair, { readonly kind: 'wait' | 'undo' | 'go-on' | 'park' }>,
): Promise<void> {
  const plan = livePlanOf(context.facts);
  const { uuid } = plan.machine;
  switch (repair.kind) {
    case 'abort-snapshot':
      return hypervisor.abortJob(uuid);
    case 'resume':
      await resumeHeld(hypervisor, uuid);
      context.commit({ vcpusHeld: false });
      return;
    case 'end-forgotten':
      return endForgotten(context, repair.pid);
    case 'name-images': {
      if (repair.giveUp)
        context.commit({ givenUp: { cancelled: false, error: errorRecord(pointLost(false)) } });
      if (repair.onOverlays) context.commit({ overlaysNamed: true });
      const volumes = plan.volumes.filter(({ target }) => repair.targets.includes(target));
      return nameImages(hypervisor, plan, volumes, repair.onOverlays);
    }
    case 'start-cold':
      // Its definition names the overlays that hold what it wrote: the look before has seen to that.
      return hypervisor.start(uuid);
    default:
      return assertNever(repair);
  }
}

/** Its vCPUs stand still and libvirt cannot have it back: it closes its images, and the machine is started anew. */
async function endForgotten(context: Context, pid: number): Promise<void> {
  const { volumes, machine } = livePlanOf(context.facts);
  const isThere = async (): Promise<boolean> => {
    for (const { overlay, file } of volumes)
      for (const path of [overlay, file])
        if ((await exists(path)) && (await ownQemu(path, machine.uuid))?.pid === pid) return true;
    return false;
  };
  const deadline = performance.now() + endQemuMs;
  for (let asked = false; await isThere(); asked = true) {
    const late = performance.now() > deadline;
    try {
      if (!asked || late) process.kill(pid, late ? 'SIGKILL' : 'SIGTERM');
    } catch (error) {
      if (!isErrno(error, 'ESRCH')) throw error;
    }
    await sleep(waitPollMs);
  }
  context.commit({ vcpusHeld: false });
}

/** Waits for libvirt to answer; a job without a plan has touched nothing and needs no look. */
async function observeWhenPossible(hypervisor: Hypervisor, context: Context): Promise<LiveWorld> {
  if (context.facts.plan === undefined) return emptyWorld;
  const deadline = performance.now() + waitDeadlineMs;
  for (let failures = 0; ; failures += 1) {
    try {
      return await observeLive(hypervisor, context.facts);
    } catch (error) {
      if (!(error instanceof HypervisorError) || performance.now() > deadline) throw error;
      if (failures === 0)
        context.warn(`recovery: libvirt cannot be asked yet, waiting for it: ${error.message}`);
      await sleep(waitPollMs);
    }
  }
}

const emptyWorld: LiveWorld = {
  machine: 'gone',
  status: { state: 'no-state', reason: 'unknown' },
  busy: false,
  state: 'absent',
  volumes: [],
};

/** Nothing of the backup is left: the machine is on its own images, and the job ends. */
async function undo(
  { hypervisor, abandonPartials }: LiveRecoveryDependencies,
  context: Context,
  cause: StillpointError | undefined,
): Promise<Settlement> {
  if (context.facts.plan !== undefined) {
    context.commit({ undoing: true });
    await removeRunDirectory(context);
    await dropOwnCheckpoint(hypervisor, context);
    await removeLiveWork(context);
    if (context.facts.frozen !== undefined) await abandonPartials(context);
  }
  if (isCancelled(context, cause)) return { kind: 'end', state: 'cancelled' };
  return { kind: 'end', state: 'failed', error: errorRecord(cause ?? agentDied()) };
}

/** The machine is safe: finish the backup, or (given up) only the merge. */
async function goOn(
  { abandonPartials, isCancelTooLate }: LiveRecoveryDependencies,
  context: Context,
  cause: StillpointError | undefined,
  repair: Extract<LiveRepair, { readonly kind: 'go-on' }>,
): Promise<Settlement> {
  const { facts } = context;
  await removeRunDirectory(context);
  const isTooLate =
    cause === undefined &&
    context.cancelRequested &&
    facts.givenUp === undefined &&
    facts.merged === true &&
    (await isCancelTooLate(context));
  // What a storage refuses since can be given up all the same.
  const isRefused = cause !== undefined && context.cancelRequested && facts.merged === true;
  const cancelled = !isTooLate && (isRefused || isCancelled(context, cause));
  if (facts.givenUp === undefined && !facts.committed) {
    // Nothing is waited for while a guest writes to an overlay: what cannot be stored now is given up.
    const unstored = cause !== undefined && facts.retained === undefined;
    if (cancelled || repair.giveUp || unstored || canNeverBeStored(cause))
      context.commit({ givenUp: { cancelled, error: errorRecord(cause ?? pointLost(cancelled)) } });
  }
  if (context.facts.givenUp !== undefined) {
    await abandonPartials(context);
    if (repair.from === 'commit') return { kind: 'continue', from: 'drop' };
    if (repair.from === 'mark' || repair.from === 'stow') return { kind: 'continue', from: 'merge' };
  }
  const stops = countStops(context, cause);
  if (cause !== undefined && (stops >= mergeStopsMax || (!cancelled && mustPark(cause))))
    return {
      kind: 'park',
      error: stops >= mergeStopsMax ? mergeStopsMachine(facts, cause) : errorRecord(cause),
    };
  return { kind: 'continue', from: repair.from };
}

/** Sockets of exports that a killed agent has left. */
async function removeRunDirectory({ facts, jobId }: Context): Promise<void> {
  await rm(join(facts.settings.runDirectory, jobId), { recursive: true, force: true });
}

/** A merge that makes QEMU crash must not be tried on the running machine again and again. */
function countStops(context: Context, cause: StillpointError | undefined): number {
  if (!(cause instanceof MergeError) || cause.code !== 'MACHINE_STOPPED') return 0;
  const stops = (context.facts.mergeStops ?? 0) + 1;
  context.commit({ mergeStops: stops });
  return stops;
}

/** What needs somebody to make room, or to change something, before it can go on. */
function mustPark(cause: StillpointError): boolean {
  if (cause instanceof HypervisorError || cause instanceof SnapshotError) return false;
  if (canNeverBeStored(cause)) return false;
  if (cause instanceof JobError && cause.code === 'AGENT_STOPPED') return false;
  return !(cause instanceof MergeError) || cause.code !== 'MACHINE_STOPPED';
}

function mergeStopsMachine(facts: LiveFacts, cause: StillpointError): ErrorRecord {
  const { name } = facts.machine;
  return {
    code: cause.code,
    message: `${name} went down ${mergeStopsMax} times during its merge, and was started again: ${cause.message}`,
    hint: `look at /var/log/libvirt/qemu/${name}.log; the merge works without QEMU too: virsh shutdown ${name}, then: stillpoint job retry <id>, then start it`,
    retryable: true,
  };
}

function isCancelled(context: Context, cause: StillpointError | undefined): boolean {
  return (
    (cause instanceof JobError && cause.code === 'CANCELLED') ||
    (cause === undefined && context.cancelRequested)
  );
}

function agentDied(): JobError {
  return new JobError('AGENT_DIED', 'the agent that ran this job died; its work was undone', {
    hint: 'the machine is as it was; start the backup again',
    retryable: true,
  });
}

function pointLost(cancelled: boolean): StillpointError {
  if (cancelled) return new JobError('CANCELLED', 'the job was cancelled');
  return new SnapshotError(
    'MACHINE_INTERFERED',
    'the point in time was lost: memory and images are not what the job left',
    {
      hint: 'the machine is complete and runs on its own images again; start the backup again',
      retryable: true,
    },
  );
}

function park(context: Context, cause: StillpointError | undefined, why: string, code?: string): Settlement {
  return {
    kind: 'park',
    error: {
      code: code ?? cause?.code ?? 'CANNOT_MERGE_DISK_IMAGES',
      message: `${context.facts.machine.name} needs you: ${why}${cause === undefined ? '' : ` (${cause.message})`}`,
      hint: 'put that right, then: stillpoint job retry <id>; what the job did: stillpoint job show <id>',
      retryable: true,
    },
  };
}

/** What a repair is about to do, for the operator. */
function describeLiveRepair(repair: LiveRepair): string {
  switch (repair.kind) {
    case 'wait':
      return 'waits for libvirt to finish what it does';
    case 'abort-snapshot':
      return 'ends the snapshot that nobody waits for';
    case 'resume':
      return 'lets the machine run on';
    case 'end-forgotten':
      return `ends process ${repair.pid}, a QEMU that libvirt has forgotten in a pivot`;
    case 'name-images':
      return `lets the definition name the ${repair.onOverlays ? 'overlays' : 'images'} of ${repair.targets.join(', ')}`;
    case 'start-cold':
      return `starts the machine: ${repair.why}`;
    case 'undo':
      return 'the machine is as it was; removes what was prepared';
    case 'go-on':
      return `the machine is in order; the job goes on with ${repair.from}`;
    case 'park':
      return `needs an operator: ${repair.why}`;
    default:
      return assertNever(repair);
  }
}
