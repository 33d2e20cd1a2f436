import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Storage } from '../../storage/storage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { StepRow } from '../jobs/job.ts';
import { currentBootId } from '../jobs/owner.ts';
import type { Step, StepContext } from '../jobs/step.ts';
import { MergeError } from '../merge/errors.ts';
import { flushMerged, requireMerged } from '../merge/flush.ts';
import { mergeOffline } from '../merge/offline.ts';
import { streamVolumes } from '../merge/stream.ts';
import { describeBackup } from '../retain/manifest.ts';
import { namesFor, orderStorages, type Retained, retainInto } from '../retain/retain.ts';
import type { OpenVolume } from '../retain/retainVolume.ts';
import { guardMachine, readOwnerSettings, unguardMachine } from '../snapshot/guard.ts';
import { answerMs, ImageExport } from '../snapshot/imageExport.ts';
import type { PlannedVolume, SavePlan } from '../snapshot/plan.ts';
import { makeRunDirectory } from '../snapshot/runDirectory.ts';
import { removeStateFile } from '../snapshot/stateFile.ts';
import { removeWorkDirectories } from '../snapshot/workFiles.ts';
import { commitManifests } from './commitManifests.ts';
import { isDownByAccident } from './decide.ts';
import { dropFailed, dropUnneeded } from './checkpoints.ts';
import type { BackupFacts } from './facts.ts';
import type { LimitsOf } from './jobLimits.ts';
import { requireHere } from './leftHost.ts';
import { findMachine, namesImage, ownersStatus } from './world.ts';
import { beforeOf, planOf } from './saveSteps.ts';

export interface LaterStepDependencies {
  readonly hypervisor: Hypervisor;
  /** @throws StorageError when the configuration has no such storage any more */
  readonly storage: (name: string) => Storage;
  /** The journal's account of the job's steps, for the manifest. */
  readonly stepRows: (jobId: string) => readonly StepRow[];
  /** Those that are configured, whether the job uses them or not. */
  readonly allStorages: () => readonly Storage[];
  readonly limits: LimitsOf;
}

/**
 * The machine is in libvirt and has a QEMU.
 * @throws MergeError MACHINE_STOPPED when it went down by accident: recovery starts it again
 */
async function isActive(hypervisor: Hypervisor, facts: BackupFacts): Promise<boolean> {
  const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === facts.machine.uuid);
  if (machine === undefined) return false;
  const { name } = machine;
  const status = ownersStatus(machine);
  if (isDownByAccident(facts, status, facts.bootId !== currentBootId())) {
    throw new MergeError('MACHINE_STOPPED', `${name} went down (${status.reason}) during its backup`, {
      retryable: true,
    });
  }
  return status.state !== 'shut-off' && status.state !== 'crashed';
}

/**
 * Its owner has not given the machine other images: a merge would be of images that nobody uses any more, and what is
 * frozen may be in use.
 * @throws MergeError CANNOT_MERGE_DISK_IMAGES
 */
async function requireNamed(hypervisor: Hypervisor, plan: SavePlan): Promise<void> {
  const { uuid, name } = plan.machine;
  const machine = await findMachine(hypervisor, uuid);
  if (machine?.persistent !== true) return;
  const next = DomainXml.parse(await hypervisor.definition(uuid, 'persistent'));
  for (const volume of plan.volumes) {
    if (namesImage(next, volume)) continue;
    throw new MergeError(
      'CANNOT_MERGE_DISK_IMAGES',
      `the definition of ${name} names another image of ${volume.target}`,
      {
        hint: `virsh domblklist ${name} --inactive; the job's was ${volume.image}`,
        retryable: true,
      },
    );
  }
}

/** Gives the machine its autostart back, once: afterwards it is the owner's to change. */
export async function giveAutostartBack(hypervisor: Hypervisor, facts: BackupFacts): Promise<void> {
  if (facts.unguarded || facts.guardReleased) return;
  await unguardMachine(hypervisor, planOf(facts).machine.uuid, beforeOf(facts));
}

/** Brings the machine back to one image per volume; what is frozen stays untouched until this is on the disk. */
export function mergeSteps({ hypervisor, limits }: LaterStepDependencies): readonly Step<BackupFacts>[] {
  let isPulling = false;
  const merge = async (context: StepContext<BackupFacts>): Promise<void> => {
    const plan = planOf(context.facts);
    const { settings } = context.facts;
    // What is frozen, and what stands on it, may be in use where the machine is now.
    await requireHere(hypervisor, plan.machine);
    // A parked job had given the autostart back, and the owner may have changed it since.
    if (context.facts.guardReleased) {
      const { autostart } = await readOwnerSettings(hypervisor, plan.machine.uuid);
      context.commit({ before: { ...beforeOf(context.facts), autostart }, guardReleased: false });
    }
    await guardMachine(hypervisor, plan.machine.uuid, beforeOf(context.facts));
    if (!(await isActive(hypervisor, context.facts))) {
      await requireNamed(hypervisor, plan);
      await mergeOffline(plan, {
        includeSharedBase: settings.includeSharedBase,
        deadlineMs: settings.mergeDeadlineMs,
      });
      return;
    }
    const live = DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'live'));
    if (live.runId !== undefined) context.commit({ mergeRun: live.runId });
    isPulling = true;
    try {
      await streamVolumes(hypervisor, plan, {
        includeSharedBase: settings.includeSharedBase,
        limit: limits(context.facts).merge,
        deadlineMs: settings.mergeDeadlineMs,
        onProgress: (doneBytes, totalBytes) => context.report({ doneBytes, totalBytes }),
      });
    } finally {
      isPulling = false;
    }
  };

  const flush = async (context: StepContext<BackupFacts>): Promise<void> => {
    const plan = planOf(context.facts);
    const { includeSharedBase } = context.facts.settings;
    await requireHere(hypervisor, plan.machine);
    if (await isActive(hypervisor, context.facts)) {
      await flushMerged(hypervisor, plan, includeSharedBase, (vcpusHeld) => context.commit({ vcpusHeld }));
    } else {
      await requireMerged(plan, { inUse: false, includeSharedBase });
    }
    context.learn({ flushed: true, vcpusHeld: false });
  };

  const unguard = async (context: StepContext<BackupFacts>): Promise<void> => {
    if (!context.facts.unguarded) await isActive(hypervisor, context.facts);
    await giveAutostartBack(hypervisor, context.facts);
    context.learn({ unguarded: true });
  };

  return [
    // QEMU goes on pulling by itself, and the next process finds its block job.
    { name: 'merge', state: 'merging', cancellable: false, canBeLeft: () => isPulling, act: merge },
    { name: 'flush', state: 'merging', cancellable: false, act: flush },
    { name: 'unguard', state: 'merging', reached: 'merged', cancellable: false, act: unguard },
  ];
}

/** Puts the artifacts into the storages, each with its manifest last, and removes what the job made. */
export function retainSteps(dependencies: LaterStepDependencies): readonly Step<BackupFacts>[] {
  const retain = async (context: StepContext<BackupFacts>): Promise<void> => {
    const { facts, jobId } = context;
    const plan = planOf(facts);
    const { settings } = facts;
    const names = namesFor(plan.machine.name, pointInTimeOf(facts));
    const retained: Record<string, Retained> = { ...facts.retained };
    const directory = join(settings.runDirectory, jobId);
    const storages = await orderStorages(
      settings.storages.map((name) => dependencies.storage(name)),
      plan,
    );
    try {
      for (const storage of storages) {
        if ((await storage.findCommitted(facts.backupId)) !== null) continue;
        const { hold } = context;
        const writer = await storage.begin({ jobId, backupId: facts.backupId, machine: plan.machine, hold });
        // Files can be looked at again; of what went elsewhere it is known that it is all there.
        if (writer.directory === null && retained[storage.name] !== undefined) continue;
        const mayTake = storage === storages.at(-1);
        retained[storage.name] = await retainInto(writer, plan, names, mayTake, {
          signal: context.signal,
          limit: dependencies.limits(facts).read,
          deadlineMs: settings.retainDeadlineMs,
          warn: (message) => context.warn(message),
          onProgress: (file, doneBytes, totalBytes) =>
            context.report({ detail: `${storage.name}: ${file}`, doneBytes, totalBytes }),
          openFrozen: (volume) => openFrozen(volume, directory, context.signal),
        });
        // The next storage may take the frozen images away.
        context.commit({ retained: { ...retained } });
      }
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
    context.learn({ retained });
  };

  const commit = async (context: StepContext<BackupFacts>): Promise<void> => {
    const { facts } = context;
    const plan = planOf(facts);
    await commitManifests(context, dependencies, plan.machine, ({ names, storageName, retained, ...point }) =>
      describeBackup(plan, { ...frozenPointOf(facts), ...point }, names, storageName, retained),
    );
    context.learn({ committed: true });
  };

  return [
    // The machine is merged: what is frozen waits, and harms nobody. T1 is safe in it, and the next process stores it.
    {
      name: 'retain',
      state: 'retaining',
      cancellable: true,
      pausable: 'within',
      canBeLeft: () => true,
      act: retain,
    },
    { name: 'commit', state: 'retaining', reached: 'retained', cancellable: false, act: commit },
    {
      name: 'cleanup',
      state: 'retained',
      cancellable: false,
      act: async (context) => {
        const plan = planOf(context.facts);
        if (plan.checkpoint !== null)
          await dropUnneeded(
            dependencies.hypervisor,
            plan.machine.uuid,
            dependencies.allStorages(),
            (message) => context.warn(message),
          );
        await removeWork(plan);
      },
    },
  ];
}

/** The checkpoint of a backup that comes to nothing; what cannot be deleted now is left to the next backup. */
export async function dropOwnCheckpoint(
  hypervisor: Hypervisor,
  context: Pick<StepContext<BackupFacts>, 'facts' | 'warn'>,
): Promise<void> {
  const { plan, checkpointBegun } = context.facts;
  if (plan === undefined || plan.checkpoint === null || checkpointBegun !== true) return;
  await dropFailed(hypervisor, context, plan.machine, plan.checkpoint);
}

/** What a killed agent has left of servers of frozen images. */
export async function removeSockets({
  facts,
  jobId,
}: Pick<StepContext<BackupFacts>, 'facts' | 'jobId'>): Promise<void> {
  await rm(join(facts.settings.runDirectory, jobId), { recursive: true, force: true });
}

/** Removes the memory state and the job's directories; may be started again after a crash. */
export async function removeWork(plan: SavePlan): Promise<void> {
  await removeStateFile(plan.stateFile);
  await removeWorkDirectories(plan);
}

/** Serves a frozen image for reading. */
async function openFrozen(
  { target, frozen }: PlannedVolume,
  directory: string,
  signal: AbortSignal,
): Promise<OpenVolume> {
  await makeRunDirectory(directory);
  const exported = await ImageExport.open({ target, file: frozen, format: 'qcow2' }, directory, {
    answerMs,
    signal,
  });
  return { source: exported.volume, [Symbol.asyncDispose]: () => exported[Symbol.asyncDispose]() };
}

function pointInTimeOf(facts: BackupFacts): string {
  if (facts.pointInTime === undefined) throw new Error('the job has no point in time');
  return facts.pointInTime;
}

function frozenPointOf(
  facts: BackupFacts,
): Omit<Parameters<typeof describeBackup>[1], 'pointInTime' | 'steps'> {
  const before = beforeOf(facts);
  return {
    backupId: facts.backupId,
    pauseMs: facts.pauseMs ?? null,
    running: before.running,
    autostart: before.autostart,
    labels: facts.settings.labels,
  };
}
