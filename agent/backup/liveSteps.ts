import { copyFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../common/errors.ts';
import { fsyncFile, writeFileDurable } from '../../common/files.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { changesOf } from '../../nbd/changes.ts';
import type { BackupWriter, Storage } from '../../storage/storage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { StepRow } from '../jobs/job.ts';
import type { Step, StepContext } from '../jobs/step.ts';
import type { ChosenStorages } from '../retain/storageChoice.ts';
import { commitOffline, commitVolumes, nameImages, requireCommitted } from '../merge/commit.ts';
import { readInFull } from '../retain/lineage.ts';
import { describeBackup } from '../retain/manifest.ts';
import { definitionFileOf, namesFor } from '../retain/retain.ts';
import { retainLive } from '../retain/retainLive.ts';
import { copyTpmState, gatherExtras } from '../snapshot/extras.ts';
import type { ChangingVolume } from '../retain/retainVolume.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import { readOwnerSettings } from '../snapshot/guard.ts';
import { watchConvergence } from '../snapshot/converge.ts';
import { answerMs, ImageExport, storedDirtyContextOf } from '../snapshot/imageExport.ts';
import {
  correctState,
  frozenMarks,
  liveChainOf,
  prepareOverlays,
  requireFrozen,
  takeLive,
} from '../snapshot/live.ts';
import type { LivePlan, LiveVolume } from '../snapshot/livePlan.ts';
import { watchOverlays } from '../snapshot/overlayWatch.ts';
import { PauseMeter } from '../snapshot/pause.ts';
import { planLive } from '../snapshot/planLive.ts';
import { makeRunDirectory } from '../snapshot/runDirectory.ts';
import { publicDefinition } from '../snapshot/save.ts';
import type { Together } from '../snapshot/together.ts';
import { currentStateFile, removeStateFile, stateFileTime, stowState } from '../snapshot/stateFile.ts';
import { inodeOf, modificationTime, removeWorkDirectories } from '../snapshot/workFiles.ts';
import { commitManifests } from './commitManifests.ts';
import { dropFailed, dropUnneeded, markBefore } from './checkpoints.ts';
import { guarded } from './guarded.ts';
import { takeTogether } from './liveTogether.ts';
import type { LimitsOf } from './jobLimits.ts';
import { type LiveFacts, livePlanOf } from './liveFacts.ts';
import { requireNoAccident } from './liveWorld.ts';

/** The event of a pause's end may come after the answer to the call. */
const pauseEventMs = 2_000;
export interface LiveStepDependencies {
  readonly hypervisor: Hypervisor;
  /** @throws StorageError when the configuration has no such storage any more */
  readonly storage: (name: string) => Storage;
  /** The journal's account of the job's steps, for the manifest. */
  readonly stepRows: (jobId: string) => readonly StepRow[];
  /** What the other unfinished jobs are still going to write to the RAM disk. */
  readonly ramDiskReservedBytes: (jobId: string) => number;
  /** Checks that the storages of the job can take what the plan will bring. */
  readonly checkStorages: (facts: LiveFacts, plan: LivePlan) => Promise<readonly string[]>;
  /** Chooses anew among the storages of a group, by what the plan will bring. */
  readonly chooseStorages: (facts: LiveFacts, plan: LivePlan) => Promise<ChosenStorages>;
  /** Decides which volumes of the plan can be increments. */
  readonly planLineages: (facts: LiveFacts, plan: LivePlan) => Promise<LivePlan>;
  /** Those that are configured, whether the job uses them or not. */
  readonly allStorages: () => readonly Storage[];
  readonly limits: LimitsOf;
  /** The other machines that share T1. */
  readonly together?: Together | undefined;
}

type Context = StepContext<LiveFacts>;

function pointInTimeOf(facts: LiveFacts): string {
  if (facts.pointInTime === undefined) throw new Error('the job has no point in time');
  return facts.pointInTime;
}

/** The steps that make T1. */
export function liveSnapshotSteps(dependencies: LiveStepDependencies): readonly Step<LiveFacts>[] {
  const { hypervisor, together } = dependencies;

  const preflight = async (context: Context): Promise<void> => {
    const { settings, machine } = context.facts;
    const request = { jobId: context.jobId, machineUuid: machine.uuid, ...settings };
    let plan: LivePlan;
    let ramDiskReservedBytes: number;
    do {
      ramDiskReservedBytes = dependencies.ramDiskReservedBytes(context.jobId);
      const seen = await planLive(hypervisor, { ...request, ramDiskReservedBytes });
      context.learn({
        settings: { ...settings, ...(await dependencies.chooseStorages(context.facts, seen)) },
      });
      plan = await dependencies.planLineages(context.facts, seen);
      // Now others see it; who planned at the same moment has been seen by nobody, and is looked for again.
      context.commit({ plan });
    } while (plan.stateOnRamDisk && dependencies.ramDiskReservedBytes(context.jobId) > ramDiskReservedBytes);
    learnWarnings(context, [...plan.warnings, ...(await dependencies.checkStorages(context.facts, plan))]);
  };

  const prepare = async (context: Context): Promise<void> => {
    const plan = livePlanOf(context.facts);
    const { uuid } = plan.machine;
    await prepareOverlays(plan);
    await writeFileDurable(definitionFileOf(plan), await publicDefinition(hypervisor, uuid), { mode: 0o600 });
    await gatherExtras(hypervisor, plan);
    const overlayInodes: Record<string, string> = {};
    for (const { target, overlay } of plan.volumes) overlayInodes[target] = await inodeOf(overlay);
    const { running, autostart } = await readOwnerSettings(hypervisor, uuid);
    context.learn({ overlayInodes, before: { running, autostart } });
  };

  const checkpoint = async (context: Context): Promise<void> => {
    const plan = livePlanOf(context.facts);
    if (plan.checkpoint === null) return;
    const refusal = await markBefore(hypervisor, plan, plan.checkpoint);
    if (refusal === null) return;
    learnWarnings(context, [refusal]);
    context.learn({ plan: { ...plan, checkpoint: null } });
  };

  const snapshot = async (context: Context): Promise<void> => {
    const plan = livePlanOf(context.facts);
    using _warm = await hypervisor.warmUp();
    if (together !== undefined) {
      const { at, pauseMs } = await takeTogether(hypervisor, context, plan, together);
      context.learn({ pointInTime: at.toISOString(), pauseMs });
      return;
    }
    await using meter = await PauseMeter.start(hypervisor, plan.machine.uuid);
    const { settings } = context.facts;
    const converge = { ...settings, onHeld: () => context.commit({ vcpusHeld: true }) };
    await guarded(
      context,
      (signal) => watchConvergence(hypervisor, plan, converge, signal),
      (signal) => takeLive(hypervisor, plan, { deadlineMs: settings.saveDeadlineMs, signal }),
    );
    const pauseMs = await meter.waitForPause(pauseEventMs);
    const stoppedAt = meter.stoppedAt ?? new Date(await stateFileTime(plan.stateFile));
    context.learn({ pointInTime: stoppedAt.toISOString(), pauseMs, vcpusHeld: false });
  };

  const mark = async (context: Context): Promise<void> => {
    const { facts } = context;
    const plan = livePlanOf(facts);
    const live = DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'live'));
    for (const volume of plan.volumes) {
      if (live.runId === undefined || liveChainOf(live, volume) === 'overlay') continue;
      throw new SnapshotError(
        'WRONG_BLOCK_GRAPH',
        `${volume.target} of ${plan.machine.name} is not on its overlay after the snapshot`,
        { hint: `virsh dumpxml ${plan.machine.name} shows <backingStore> of the disk` },
      );
    }
    const stateFile = await currentStateFile(plan);
    const at = facts.pointInTime ?? new Date(await stateFileTime(stateFile)).toISOString();
    await correctState(hypervisor, plan, stateFile);
    if (plan.nvram !== null) {
      const { source, file } = plan.nvram;
      if ((await modificationTime(source)) > Date.parse(at))
        learnWarnings(context, [`${source} was written to after T1: the stored UEFI variables are newer`]);
      await copyFile(source, file);
      await fsyncFile(file);
    }
    for (const extra of plan.extras)
      if (extra.kind === 'tpm' && (await modificationTime(extra.source)) > Date.parse(at))
        learnWarnings(context, [`${extra.source} was written to after T1: the stored state is newer`]);
    await copyTpmState(plan);
    context.learn({ frozen: await frozenMarks(plan), pointInTime: at, pauseMs: facts.pauseMs ?? null });
  };

  const stow = async (context: Context): Promise<void> => {
    const plan = livePlanOf(context.facts);
    try {
      await stowState(plan, {
        signal: context.signal,
        onProgress: (doneBytes) => context.report({ doneBytes, totalBytes: plan.memoryBytes }),
      });
    } catch (error) {
      context.signal.throwIfAborted();
      learnWarnings(context, [`the memory stays on the RAM disk until it is stored: ${messageOf(error)}`]);
    }
  };

  return [
    {
      name: 'preflight',
      state: 'initialized',
      cancellable: true,
      pausable: 'before',
      deadlineMs: 300_000,
      act: preflight,
    },
    { name: 'prepare', state: 'snapshotting', cancellable: true, deadlineMs: 300_000, act: prepare },
    {
      name: 'checkpoint',
      state: 'snapshotting',
      cancellable: true,
      intend: () => ({ checkpointBegun: true }),
      act: checkpoint,
    },
    {
      name: 'snapshot',
      state: 'snapshotting',
      cancellable: true,
      intend: () => ({ snapshotBegun: true }),
      act: snapshot,
    },
    { name: 'mark', state: 'snapshotting', reached: 'snapshotted', cancellable: false, act: mark },
    { name: 'stow', state: 'snapshotted', cancellable: true, act: stow },
  ];
}

/** Puts the frozen point into the storages, while the overlays stay within bounds. */
export function liveRetainStep(dependencies: LiveStepDependencies): Step<LiveFacts> {
  const { together } = dependencies;
  const retain = async (context: Context): Promise<void> => {
    const { facts, jobId, hold } = context;
    if (facts.frozen === undefined) throw new Error('the job has no frozen point');
    await checkBitmaps(context);
    const plan = livePlanOf(context.facts);
    const writers = new Map<string, BackupWriter>();
    for (const name of facts.settings.storages)
      writers.set(
        name,
        await dependencies
          .storage(name)
          .begin({ jobId, backupId: facts.backupId, machine: plan.machine, hold }),
      );
    const directory = join(facts.settings.runDirectory, jobId);
    await makeRunDirectory(directory);
    try {
      const watch = (signal: AbortSignal): Promise<void> => watchOverlays(plan, signal);
      const retained = await guarded(context, watch, (signal) => {
        const open = (volume: LiveVolume): Promise<ChangingVolume> => openFrozen(volume, directory, signal);
        const work = (): ReturnType<typeof retainLive> =>
          retainLive(writers, plan, namesFor(plan.machine.name, pointInTimeOf(facts)), open, {
            signal,
            limit: dependencies.limits(facts).read,
            deadlineMs: facts.settings.retainDeadlineMs,
            warn: (message) => context.warn(message),
            onProgress: (detail, doneBytes, totalBytes) => context.report({ detail, doneBytes, totalBytes }),
          });
        return together === undefined ? work() : together.reading(signal, work);
      });
      await requireFrozen(plan, facts.frozen);
      context.learn({ retained: retained.files, plan: retained.plan });
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  };
  return {
    name: 'retain',
    state: 'retaining',
    reached: 'retained',
    cancellable: true,
    // The overlays are watched, also in a pause.
    pausable: 'within',
    act: retain,
  };
}

/**
 * The bitmaps of the frozen images were stored when QEMU let go of them. One that is not there, or not whole, tells
 * nothing: its volume is read in full.
 */
async function checkBitmaps(context: Context): Promise<void> {
  const plan = livePlanOf(context.facts);
  const reasons = new Map<string, string>();
  for (const { target, since, file, format } of plan.volumes) {
    if (since === null) continue;
    const { bitmaps, usableBitmaps } = await readImageInfo(file, format, { inUse: true });
    if (usableBitmaps.includes(since)) continue;
    const why = bitmaps.includes(since) ? `${since} is inconsistent` : `${file} has no ${since}`;
    reasons.set(target, `its bitmap cannot be used: ${why}`);
  }
  if (reasons.size === 0) return;
  learnWarnings(
    context,
    [...reasons].map(([target, reason]) => `${target} is read in full: ${reason}`),
  );
  context.learn({ plan: readInFull(plan, reasons) });
}

/** A frozen image with what its bitmap says, which holds all that was written up to T1. */
async function openFrozen(
  volume: LiveVolume,
  directory: string,
  signal: AbortSignal,
): Promise<ChangingVolume> {
  const bitmap = volume.since ?? undefined;
  const exported = await ImageExport.open(volume, directory, { answerMs, signal, bitmap });
  const { volume: source } = exported;
  return {
    source,
    changes: async () => {
      if (bitmap === undefined) throw new Error(`${volume.target} is read whole`);
      const dirty = await source.dirtyExtents(storedDirtyContextOf(bitmap), signal);
      return changesOf(dirty, await source.extents(signal), { clusterBytes: volume.clusterBytes });
    },
    [Symbol.asyncDispose]: () => exported[Symbol.asyncDispose](),
  };
}

/** Brings the machine back to its images; from the begin of `merge` these are not T1 any more. */
export function liveMergeSteps({ hypervisor, limits }: LiveStepDependencies): readonly Step<LiveFacts>[] {
  let isCommitting = false;
  const merge = async (context: Context): Promise<void> => {
    const { facts } = context;
    const plan = livePlanOf(facts);
    const { mergeDeadlineMs: deadlineMs } = facts.settings;
    if (await requireNoAccident(hypervisor, facts)) {
      isCommitting = true;
      try {
        await commitVolumes(hypervisor, plan, {
          limit: limits(facts).merge,
          deadlineMs,
          onHeld: (vcpusHeld) => context.commit({ vcpusHeld }),
          onSuspended: () => context.point('suspended'),
          onProgress: (doneBytes, totalBytes) => context.report({ doneBytes, totalBytes }),
        });
      } finally {
        isCommitting = false;
      }
    } else {
      await commitOffline(hypervisor, plan, { deadlineMs });
    }
  };
  const verify = async (context: Context): Promise<void> => {
    const plan = livePlanOf(context.facts);
    await requireCommitted(hypervisor, plan, await requireNoAccident(hypervisor, context.facts));
    // At a pivot libvirt gives a definition that was changed elements of its own (decision 0006).
    if (context.facts.overlaysNamed) await nameImages(hypervisor, plan, plan.volumes);
    context.learn({ merged: true });
  };
  return [
    {
      name: 'merge',
      state: 'merging',
      cancellable: false,
      // QEMU goes on by itself, and the next process finds its block job; but nobody else would end a pivot.
      canBeLeft: ({ vcpusHeld }) => isCommitting && vcpusHeld !== true,
      intend: () => ({ mergeBegun: true }),
      act: merge,
    },
    { name: 'verify', state: 'merging', reached: 'merged', cancellable: false, act: verify },
  ];
}

/** Writes the manifests and removes what the job made. */
export function liveCommitSteps(dependencies: LiveStepDependencies): readonly Step<LiveFacts>[] {
  const commit = async (context: Context): Promise<void> => {
    const plan = livePlanOf(context.facts);
    await commitManifests(context, dependencies, plan.machine, ({ names, storageName, retained, ...point }) =>
      describeBackup(plan, { ...frozenPointOf(context.facts), ...point }, names, storageName, retained),
    );
    context.learn({ committed: true });
  };
  return [
    { name: 'commit', state: 'merged', cancellable: false, act: commit },
    {
      name: 'cleanup',
      state: 'merged',
      cancellable: false,
      act: async (context) => {
        const { machine, checkpoint } = livePlanOf(context.facts);
        if (checkpoint !== null)
          await dropUnneeded(dependencies.hypervisor, machine.uuid, dependencies.allStorages(), (message) =>
            context.warn(message),
          );
        await removeLiveWork(context);
      },
    },
  ];
}

/** The step of a job that was given up: the machine is merged, nothing else is kept. */
export function liveDropStep({ hypervisor }: LiveStepDependencies): Step<LiveFacts> {
  return {
    name: 'drop',
    state: 'merged',
    cancellable: false,
    act: async (context) => {
      await dropOwnCheckpoint(hypervisor, context);
      await removeLiveWork(context);
    },
  };
}

/** The checkpoint of a backup that comes to nothing; what cannot be deleted now is left to the next backup. */
export async function dropOwnCheckpoint(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { plan, checkpointBegun } = context.facts;
  if (plan === undefined || plan.checkpoint === null || checkpointBegun !== true) return;
  await dropFailed(hypervisor, context, plan.machine, plan.checkpoint);
}

/** Removes the memory state and the job's directories; may be started again after a crash. */
export async function removeLiveWork({ facts }: Pick<Context, 'facts'>): Promise<void> {
  const plan = livePlanOf(facts);
  await removeStateFile(plan.stateFile);
  await removeWorkDirectories(plan);
}

function frozenPointOf(
  facts: LiveFacts,
): Omit<Parameters<typeof describeBackup>[1], 'pointInTime' | 'steps'> {
  return {
    backupId: facts.backupId,
    pauseMs: facts.pauseMs ?? null,
    running: true,
    autostart: facts.before?.autostart ?? false,
    labels: facts.settings.labels,
    group: facts.settings.group,
  };
}

function learnWarnings(context: Context, warnings: readonly string[]): void {
  for (const warning of warnings) context.warn(warning);
  context.learn({ warnings: [...context.facts.warnings, ...warnings] });
}
