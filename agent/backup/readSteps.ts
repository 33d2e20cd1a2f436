import { chmod, copyFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BandwidthLimit } from '../../common/bandwidth.ts';
import { fsyncFile, makeDirectoryDurable, writeFileDurable } from '../../common/files.ts';
import type { BackupWriter, Storage } from '../../storage/storage.ts';
import { NbdError } from '../../nbd/errors.ts';
import { changesOf } from '../../nbd/changes.ts';
import { NbdVolume } from '../../nbd/volume.ts';
import { dirtyContextOf } from '../hypervisor/backupXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { JobError } from '../jobs/errors.ts';
import { asStillpointError } from '../jobs/stepErrors.ts';
import type { StepRow } from '../jobs/job.ts';
import type { Step, StepContext } from '../jobs/step.ts';
import type { ChosenStorages } from '../retain/storageChoice.ts';
import { describeReadBackup } from '../retain/manifest.ts';
import { readInFull } from '../retain/lineage.ts';
import { definitionFileOf, namesFor } from '../retain/retain.ts';
import { copyTpmState, gatherExtras } from '../snapshot/extras.ts';
import { retainRead, type RetainedChanges } from '../retain/retainRead.ts';
import type { ChangingVolume } from '../retain/retainVolume.ts';
import { answerMs, ImageExport } from '../snapshot/imageExport.ts';
import { whyExportWasLost } from '../snapshot/lostExport.ts';
import { OfflineWatch } from '../snapshot/offlineWatch.ts';
import { templateDefinition } from '../snapshot/planTemplate.ts';
import { beginPullBackup, endPullBackup, socketPathOf } from '../snapshot/pullBackup.ts';
import type { ReadPlan, ReadVolume } from '../snapshot/readPlan.ts';
import { makeRunDirectory } from '../snapshot/runDirectory.ts';
import { publicDefinition } from '../snapshot/save.ts';
import type { Together } from '../snapshot/together.ts';
import { watchScratch } from '../snapshot/scratchSpace.ts';
import { removeWorkDirectories } from '../snapshot/workFiles.ts';
import { workDirectoryMode } from '../snapshot/workspace.ts';
import { dropUnneeded } from './checkpoints.ts';
import { commitManifests } from './commitManifests.ts';
import { beginFrozen } from './freezing.ts';
import type { LimitsOf } from './jobLimits.ts';
import { requireHere } from './leftHost.ts';
import type { ReadFacts } from './readFacts.ts';
import { planReading } from './readPlanning.ts';
import { beginTogether } from './togetherBegin.ts';

/** How often somebody who waits for the other machines of a group looks whether he is cancelled. */
const cancelLookMs = 200;

export interface ReadStepDependencies {
  readonly hypervisor: Hypervisor;
  /** @throws StorageError when the configuration has no such storage any more */
  readonly storage: (name: string) => Storage;
  /** The journal's account of the job's steps, for the manifest. */
  readonly stepRows: (jobId: string) => readonly StepRow[];
  /** Checks that the storages of the job can take what the plan will bring. */
  readonly checkStorages: (facts: ReadFacts, plan: ReadPlan) => Promise<readonly string[]>;
  /** Chooses anew among the storages of a group, by what the plan will bring. */
  readonly chooseStorages: (facts: ReadFacts, plan: ReadPlan) => Promise<ChosenStorages>;
  /** Decides which volumes of the plan can be increments. */
  readonly planLineages: (facts: ReadFacts, plan: ReadPlan) => Promise<ReadPlan>;
  /** The other machines that share T1. */
  readonly together?: Together | undefined;
  /** Those that are configured, whether the job uses them or not. */
  readonly allStorages: () => readonly Storage[];
  readonly limits: LimitsOf;
}

type Context = StepContext<ReadFacts>;

/** The plan of a job that is past its preflight. */
function planOf(facts: ReadFacts): ReadPlan {
  if (facts.plan === undefined) throw new Error('the job has no plan yet');
  return facts.plan;
}

function pointInTimeOf(facts: ReadFacts): string {
  if (facts.pointInTime === undefined) throw new Error('the job has no point in time');
  return facts.pointInTime;
}

/** The steps of a backup that reads volumes where they are, in their only order. Only in a group a guest is stopped. */
export function readSteps(dependencies: ReadStepDependencies): readonly Step<ReadFacts>[] {
  const { hypervisor } = dependencies;

  const preflight = async (context: Context): Promise<void> => {
    const { settings, machine } = context.facts;
    if (settings.template === undefined) await requireHere(hypervisor, machine);
    const seen = await planReading(hypervisor, context.jobId, machine, settings);
    context.learn({ settings: { ...settings, ...(await dependencies.chooseStorages(context.facts, seen)) } });
    const plan = await dependencies.planLineages(context.facts, seen);
    const warnings = [...plan.warnings, ...(await dependencies.checkStorages(context.facts, plan))];
    for (const warning of warnings) context.warn(warning);
    context.learn({ plan, warnings: [...context.facts.warnings, ...warnings] });
  };

  const begin = async (context: Context): Promise<void> => {
    const plan = planOf(context.facts);
    const { uuid } = plan.machine;
    for (const directory of plan.workDirectories) {
      await makeDirectoryDurable(directory, workDirectoryMode);
      await chmod(directory, workDirectoryMode);
    }
    if (plan.template !== true) {
      const { status, autostart } = await hypervisor.machine(uuid);
      context.commit({ before: { running: status.state !== 'paused', autostart } });
    }
    const definition =
      plan.template === true ? templateDefinition(plan) : await publicDefinition(hypervisor, uuid);
    await writeFileDurable(definitionFileOf(plan), definition, { mode: 0o600 });
    if (plan.template !== true) await gatherExtras(hypervisor, plan);
    const { at, pauseMs, freeze } = await makePoint(dependencies, context, plan);
    await copyTpmState(plan);
    if (plan.nvram !== null) {
      await copyFile(plan.nvram.source, plan.nvram.file);
      await fsyncFile(plan.nvram.file);
    }
    context.learn({ pointInTime: at.toISOString(), pauseMs, freeze });
  };

  const retain = async (context: Context): Promise<void> => {
    const plan = planOf(context.facts);
    const writers = new Map<string, BackupWriter>();
    for (const name of context.facts.settings.storages) {
      const { backupId } = context.facts;
      const { jobId, hold } = context;
      const request = { jobId, backupId, machine: plan.machine, hold };
      writers.set(name, await dependencies.storage(name).begin(request));
    }
    const read =
      plan.mode === 'disk'
        ? await readRunning(dependencies, context, plan, writers)
        : await readOff(dependencies, context, plan, writers);
    const { files, virtualSizeBytes } = read;
    context.learn({ retained: files, virtualSizeBytes, plan: read.plan });
  };

  const commit = async (context: Context): Promise<void> => {
    const { facts } = context;
    const plan = planOf(facts);
    await commitManifests(context, dependencies, plan.machine, ({ names, storageName, retained, ...at }) => {
      const point = {
        ...at,
        backupId: facts.backupId,
        autostart: facts.before?.autostart ?? false,
        pauseMs: facts.pauseMs ?? null,
        group: facts.settings.group,
        freeze: facts.freeze,
        virtualSizeBytes: facts.virtualSizeBytes ?? {},
        labels: facts.settings.labels,
      };
      return describeReadBackup(plan, point, names, storageName, retained);
    });
    context.learn({ committed: true });
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
    {
      name: 'begin',
      state: 'snapshotting',
      reached: 'snapshotted',
      cancellable: false,
      intend: () => ({ begun: true }),
      act: begin,
    },
    // What the guest overwrites meanwhile is watched, also in a pause.
    { name: 'retain', state: 'retaining', cancellable: true, pausable: 'within', act: retain },
    {
      name: 'end',
      state: 'retaining',
      cancellable: false,
      act: (context) => endPullBackup(hypervisor, planOf(context.facts)),
    },
    { name: 'commit', state: 'retaining', reached: 'retained', cancellable: false, act: commit },
    {
      name: 'cleanup',
      state: 'retained',
      cancellable: false,
      act: async (context) => {
        const plan = planOf(context.facts);
        const { uuid } = plan.machine;
        if (plan.checkpoint !== null)
          await dropUnneeded(hypervisor, uuid, dependencies.allStorages(), (message) =>
            context.warn(message),
          );
        await removeWorkDirectories(plan);
      },
    },
  ];
}

/** Makes T1, at the same instant as that of the other machines where there is a group. */
async function makePoint(
  { hypervisor, together }: ReadStepDependencies,
  context: Context,
  plan: ReadPlan,
): Promise<{ readonly at: Date; readonly pauseMs: number | null; readonly freeze: ReadFacts['freeze'] }> {
  if (plan.mode === 'offline') return { at: new Date(), pauseMs: null, freeze: undefined };
  let pauseMs: number | null = null;
  const serve = (): Promise<Date> => beginServing(hypervisor, context, plan);
  if (together === undefined) {
    // While the guest is frozen nothing is started.
    using _warm = await hypervisor.warmUp();
    return { ...(await beginFrozen(hypervisor, context, serve)), pauseMs };
  }
  try {
    using _warm = await hypervisor.warmUp();
    await meetPrepared(context, together);
    const begun = await beginFrozen(hypervisor, context, async () => {
      const point = await beginTogether(hypervisor, context, together, serve);
      ({ pauseMs } = point);
      return point.at;
    });
    return { ...begun, pauseMs };
  } catch (error) {
    together.fail(plan.machine.name, asStillpointError(error));
    throw error;
  }
}

/** Makes T1; a volume whose bitmap turns out to be of no use is read in full. */
async function beginServing(hypervisor: Hypervisor, context: Context, plan: ReadPlan): Promise<Date> {
  const { at, unusable } = await beginPullBackup(hypervisor, plan);
  if (unusable.size > 0) {
    const reasons = new Map(
      [...unusable].map(([target, why]) => [target, `its bitmap cannot be used: ${why}`]),
    );
    for (const [target, reason] of reasons) context.warn(`${target} is read in full: ${reason}`);
    context.learn({ plan: readInFull(plan, reasons) });
  }
  return at;
}

/** Reads the volumes of a running machine from its QEMU, as long as there is room for what the guest overwrites. */
async function readRunning(
  { hypervisor, limits, together }: ReadStepDependencies,
  context: Context,
  plan: ReadPlan,
  writers: ReadonlyMap<string, BackupWriter>,
): Promise<RetainedChanges> {
  const open = async ({ target, since, clusterBytes }: ReadVolume): Promise<ChangingVolume> => {
    const where = { socketPath: socketPathOf(plan), exportName: target };
    const dirtyContext = dirtyContextOf(target);
    const dirtyContexts = since === null ? [] : [dirtyContext];
    const source = await NbdVolume.open({ ...where, answerMs, signal: context.signal, dirtyContexts });
    return {
      source,
      changes: async () =>
        changesOf(
          await source.dirtyExtents(dirtyContext, context.signal),
          await source.extents(context.signal),
          { clusterBytes },
        ),
      [Symbol.asyncDispose]: () => source[Symbol.asyncDispose](),
    };
  };
  try {
    const watch = (signal: AbortSignal): Promise<void> => watchScratch(plan, signal);
    const how = { limit: limits(context.facts).read, guard: watch, together };
    return await reading(context, plan, writers, open, how);
  } catch (error) {
    throw error instanceof NbdError ? await whyExportWasLost(hypervisor, plan, error) : error;
  }
}

/** Reads the images of a machine that is off, as long as it stays so. */
async function readOff(
  { hypervisor, limits }: ReadStepDependencies,
  context: Context,
  plan: ReadPlan,
  writers: ReadonlyMap<string, BackupWriter>,
): Promise<RetainedChanges> {
  await using watch = await OfflineWatch.start(hypervisor, plan);
  const directory = join(context.facts.settings.runDirectory, context.jobId);
  const open = async (volume: ReadVolume): Promise<ChangingVolume> => {
    const exported = await ImageExport.open(volume, directory, { answerMs, signal: context.signal });
    return {
      source: exported.volume,
      changes: () => Promise.reject(new Error('an image at rest is read whole')),
      [Symbol.asyncDispose]: () => exported[Symbol.asyncDispose](),
    };
  };
  await makeRunDirectory(directory);
  try {
    const guard = (signal: AbortSignal): Promise<void> => watch.untilInterfered(signal);
    const how = { limit: limits(context.facts).read, guard };
    const read = await reading(context, plan, writers, open, how);
    await watch.requireUntouched();
    return read;
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/**
 * Reads into the storages until it is done, the job is cancelled, or `guard` rejects, which also watches while a
 * machine of a group waits for its turn.
 */
async function reading(
  context: Context,
  plan: ReadPlan,
  writers: ReadonlyMap<string, BackupWriter>,
  open: (volume: ReadVolume) => Promise<ChangingVolume>,
  {
    limit,
    guard,
    together,
  }: {
    readonly limit: BandwidthLimit;
    readonly guard: (signal: AbortSignal) => Promise<void>;
    readonly together?: Together | undefined;
  },
): Promise<RetainedChanges> {
  const ended = new AbortController();
  const stopped = new AbortController();
  const guarding = guard(ended.signal).catch((error: unknown) => stopped.abort(error));
  const signal = AbortSignal.any([context.signal, stopped.signal]);
  const read = (): Promise<RetainedChanges> =>
    retainRead(writers, plan, namesFor(plan.machine.name, pointInTimeOf(context.facts)), open, {
      signal,
      limit,
      warn: (message) => context.warn(message),
      onProgress: (detail, doneBytes, totalBytes) => context.report({ detail, doneBytes, totalBytes }),
    });
  try {
    return together === undefined ? await read() : await together.reading(signal, read);
  } catch (error) {
    // The reason is what stopped it, not that it was stopped.
    throw stopped.signal.aborted ? stopped.signal.reason : error;
  } finally {
    ended.abort();
    await guarding;
  }
}

/** The others may be busy for long with their preparations: whoever waits for them can be cancelled. */
async function meetPrepared(context: Context, together: Together): Promise<void> {
  const requireWanted = (): void => {
    if (context.cancelRequested) throw new JobError('CANCELLED', 'the job was cancelled');
  };
  requireWanted();
  const met = together.meet('prepared', context.jobId).then(() => true);
  while (!(await Promise.race([met, sleep(cancelLookMs, false)]))) requireWanted();
}
