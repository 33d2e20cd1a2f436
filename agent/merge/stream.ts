import { setTimeout as sleep } from 'node:timers/promises';
import type { BandwidthLimit } from '../../common/bandwidth.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { isTestSwitchOn } from '../../common/testSwitches.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { chainState } from '../snapshot/chain.ts';
import type { MergePlan, PlannedVolume } from '../snapshot/plan.ts';
import { Alarm } from './alarm.ts';
import { BlockJobPace } from './blockJobPace.ts';
import { MergeError } from './errors.ts';
import { requireMergeSpace, requireReserve } from './space.ts';

/** How often block jobs are looked at; events wake the loop earlier. */
const pollMs = 500;
/** How long libvirt may take to note the end of a job that is gone. */
export const noteOfEndMs = 3_000;
/** How often a pull is begun whose end libvirt does not note. */
const pullsMax = 3;
/** How often a guest that paused on a full file system is resumed before an operator must help. */
const resumeAttemptsMax = 10;

/** What of a plan names the machine and the volumes that are merged. */
export interface MergedMachine {
  readonly machine: { readonly uuid: string; readonly name: string };
  readonly volumes: readonly { readonly target: string }[];
}

export interface MergeOptions {
  readonly includeSharedBase: boolean;
  /** Of the copying; it may be changed meanwhile. */
  readonly limit: BandwidthLimit;
  readonly deadlineMs: number;
  onProgress?(doneBytes: number, totalBytes: number): void;
}

/**
 * Pulls the frozen images of an active machine into its images with block_stream, one volume after the other:
 * two at a time crash QEMU 7.2 (docs/BEHAVIOUR.md). Volumes that are merged already, and jobs that run already,
 * are taken as they are. Completion is judged by the chain, not by an event; nothing is durable until
 * `flushMerged`.
 * @throws MergeError; the machine's chain is complete in every case
 */
export async function streamVolumes(
  hypervisor: Hypervisor,
  plan: MergePlan,
  options: MergeOptions,
): Promise<void> {
  const { uuid } = plan.machine;
  const alarm = new Alarm();
  const stopped = new Set<string>();
  const unsubscribe = await hypervisor.subscribe((event) => {
    if (event.kind !== 'reconnected' && event.uuid !== uuid) return;
    if (event.kind === 'block-job' && (event.status === 'failed' || event.status === 'canceled'))
      stopped.add(event.target);
    alarm.ring();
  });
  const deadlineMs = performance.now() + options.deadlineMs;
  try {
    const pending = await pendingVolumes(hypervisor, plan);
    const totalBytes = pending.reduce((sum, volume) => sum + volume.virtualSizeBytes, 0);
    let before = 0;
    for (const volume of pending) {
      const pull = { hypervisor, plan, volume, options, deadlineMs, alarm, stopped };
      await pullVolume(pull, (doneBytes) => options.onProgress?.(before + doneBytes, totalBytes));
      before += volume.virtualSizeBytes;
    }
  } catch (error) {
    await stopBlockJobs(hypervisor, plan);
    throw error;
  } finally {
    await unsubscribe();
  }
}

/** The volumes that still stand on their frozen images, when there is room to merge them. */
async function pendingVolumes(hypervisor: Hypervisor, plan: MergePlan): Promise<readonly PlannedVolume[]> {
  const live = DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'live'));
  const pending = plan.volumes.filter((volume) => chainState(live, volume) !== 'without-frozen');
  const copied = new Map<string, number>();
  for (const volume of pending) {
    copied.set(volume.target, (await readImageInfo(volume.file, 'qcow2', { inUse: true })).allocatedBytes);
  }
  if (!isTestSwitchOn('ignore-full-target'))
    await requireMergeSpace(pending, (volume) => copied.get(volume.target) ?? 0);
  return pending;
}

interface Pull {
  readonly hypervisor: Hypervisor;
  readonly plan: MergePlan;
  readonly volume: PlannedVolume;
  readonly options: MergeOptions;
  /** Monotonic clock. */
  readonly deadlineMs: number;
  readonly alarm: Alarm;
  /** Targets whose pull has failed, or was aborted by somebody, since it is listened. */
  readonly stopped: ReadonlySet<string>;
}

/**
 * Starts the pull of one volume, unless it runs already, and waits until the chain says that it is merged. A libvirtd
 * that dies between QEMU's end of a pull and its own note of it shows the old chain for ever, without a job: another
 * pull has nothing to copy and puts that right (docs/BEHAVIOUR.md). One that has failed or was aborted is not begun
 * again.
 */
async function pullVolume(pull: Pull, onProgress: (doneBytes: number) => void): Promise<void> {
  const { hypervisor, plan, volume, options, alarm } = pull;
  const { uuid } = plan.machine;
  const pace = new BlockJobPace(hypervisor, { uuid, target: volume.target }, options.limit);
  let pulls = 0;
  const begin = (): Promise<void> => {
    pulls += 1;
    // With a base named the pull stops above it: a template is never copied into the machine.
    const base = options.includeSharedBase ? undefined : volume.base?.path;
    return hypervisor.pull(uuid, {
      target: volume.target,
      base,
      bandwidthBytesPerSecond: pace.atBegin(),
    });
  };
  await requireOwnImage(pull);
  if ((await hypervisor.blockJob(uuid, volume.target)) === null) await begin();
  else await pace.keep();
  for (let goneSinceMs: number | undefined; ; ) {
    await requireHealthyMachine(hypervisor, plan);
    const job = await hypervisor.blockJob(uuid, volume.target);
    if (job === null) {
      const state = chainState(DomainXml.parse(await hypervisor.definition(uuid, 'live')), volume);
      if (state === 'without-frozen') return;
      goneSinceMs ??= performance.now();
      if (performance.now() - goneSinceMs > noteOfEndMs) {
        // Nothing keeps the owner from a snapshot while there is no job.
        await requireOwnImage(pull);
        const isOver = pull.stopped.has(volume.target) || pulls >= pullsMax;
        if (isOver || state !== 'expected') throw incomplete(plan, volume);
        await begin();
        goneSinceMs = undefined;
      }
    } else {
      goneSinceMs = undefined;
      await pace.keep();
      onProgress(job.currentBytes);
      if (!isTestSwitchOn('ignore-full-target')) await requireReserve(volume);
    }
    if (performance.now() > pull.deadlineMs) throw deadlineExceeded(plan, options.deadlineMs);
    await alarm.wait(pollMs);
  }
}

/**
 * Where the owner has taken a snapshot, the machine runs on an image of his: a pull would fill that one.
 * @throws MergeError CANNOT_MERGE_DISK_IMAGES
 */
async function requireOwnImage({ hypervisor, plan, volume }: Pull): Promise<void> {
  const { uuid, name } = plan.machine;
  const live = DomainXml.parse(await hypervisor.definition(uuid, 'live'));
  const { path } = live.volume(volume.target);
  if (path === volume.image) return;
  throw new MergeError(
    'CANNOT_MERGE_DISK_IMAGES',
    `${volume.target} of ${name} runs on ${path ?? 'an image without a path'}, which somebody has put over ${volume.image}`,
    {
      hint: `virsh blockcommit ${name} ${volume.target} --active --pivot --base ${volume.image}; then: stillpoint job retry <id>`,
      retryable: true,
    },
  );
}

/** @throws MergeError when the machine stopped, or paused on a full file system (trap 4) */
export async function requireHealthyMachine(hypervisor: Hypervisor, plan: MergedMachine): Promise<void> {
  const { uuid, name } = plan.machine;
  const status = await hypervisor.status(uuid);
  if (status.state === 'shut-off' || status.state === 'crashed') {
    throw new MergeError(
      'MACHINE_STOPPED',
      `${name} stopped (${status.reason}) while its images were merged`,
      { retryable: true },
    );
  }
  if (status.state === 'paused' && status.reason === 'io-error' && !isTestSwitchOn('ignore-full-target')) {
    await stopBlockJobs(hypervisor, plan);
    await resumeAfterIoError(hypervisor, plan);
  }
}

function incomplete(plan: MergePlan, volume: PlannedVolume): MergeError {
  return new MergeError(
    'CANNOT_MERGE_DISK_IMAGES',
    `the pull of ${volume.target} of ${plan.machine.name} ended before it was complete`,
    {
      hint: `the machine runs on; look at df -h and the machine's log, then: stillpoint job retry <id>`,
      retryable: true,
    },
  );
}

/** Ends every block job of the plan's volumes; what was copied stays and is not copied again. */
export async function stopBlockJobs(hypervisor: Hypervisor, plan: MergedMachine): Promise<void> {
  for (const volume of plan.volumes) {
    try {
      if ((await hypervisor.blockJob(plan.machine.uuid, volume.target)) !== null) {
        await hypervisor.abortBlockJob(plan.machine.uuid, volume.target);
      }
    } catch (error) {
      if (!(error instanceof HypervisorError)) throw error;
      // The machine or libvirtd is gone, and its block jobs with it; the caller tells why we stop.
      return;
    }
  }
}

/** A guest that paused because its image could not grow goes on as soon as there is room (trap 4). */
async function resumeAfterIoError(hypervisor: Hypervisor, plan: MergedMachine): Promise<never> {
  const { uuid, name } = plan.machine;
  for (let attempt = 0; attempt < resumeAttemptsMax; attempt += 1) {
    await hypervisor.resume(uuid);
    await sleep(pollMs);
    const status = await hypervisor.status(uuid);
    if (status.state === 'running') {
      throw new MergeError(
        'NOT_ENOUGH_DISK_SPACE',
        `${name} paused because the file system of its images was full; it runs again`,
        {
          hint: 'free space, then: stillpoint job retry <id>',
          retryable: true,
        },
      );
    }
  }
  throw new MergeError(
    'NOT_ENOUGH_DISK_SPACE',
    `${name} is paused because the file system of its images is full`,
    {
      hint: `free space at once, then: virsh resume ${name}; then: stillpoint job retry <id>`,
      retryable: true,
    },
  );
}

export function deadlineExceeded(plan: MergedMachine, deadlineMs: number): MergeError {
  return new MergeError(
    'MERGE_DEADLINE_EXCEEDED',
    `the merge of ${plan.machine.name} took longer than ${Math.round(deadlineMs / 1000)} s`,
    {
      hint: 'the machine runs on; raise deadlines.mergeSeconds or the bandwidth in the policy, then: stillpoint job retry <id>',
      retryable: true,
    },
  );
}
