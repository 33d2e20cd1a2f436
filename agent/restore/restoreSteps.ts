import { messageOf } from '../../common/errors.ts';
import { readFile, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { exists, makeDirectoryDurable, writeFileDurable } from '../../common/files.ts';
import type { Storage } from '../../storage/storage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { type ProcessorRequirement, requiredProcessor } from '../hypervisor/processorXml.ts';
import type { Step, StepContext } from '../jobs/step.ts';
import { unguardMachine } from '../snapshot/guard.ts';
import { removeWorkDirectories } from '../snapshot/workFiles.ts';
import { workDirectoryMode } from '../snapshot/workspace.ts';
import { restoredDefinition } from './definition.ts';
import { RestoreError } from './errors.ts';
import {
  keepSafetyCopies,
  makeRaw,
  markOf,
  plainFilesOf,
  putInPlace,
  requireStandalone,
  replacementsOf,
  stageFile,
} from './files.ts';
import { ensureAllServed, instantSteps, stageOverlay } from './instantSteps.ts';
import type { RestoredVolume, RestoreFacts, RestorePlan } from './plan.ts';
import { isProcessorRefusal } from './processor.ts';
import type { Reading } from './readStored.ts';
import { stageAdapted } from './stagedMemory.ts';
import { requireRestoredImages } from './restoredImages.ts';
import { readSaveImage } from './saveImage.ts';
import { requireUnused } from './takenPaths.ts';

type Context = StepContext<RestoreFacts>;

/** What a restore needs. */
export interface RestoreDependencies {
  readonly hypervisor: Hypervisor;
  /** A storage by its name. */
  readonly storage: (name: string) => RestoreStorage;
}

/** What a restore asks of the storage that it reads. */
export type RestoreStorage = Pick<Storage, 'kind' | 'reading' | 'copyOut' | 'readText'>;

/** Where the definition that a restore replaces stands until it has succeeded. It holds secrets. */
export function keptDefinitionFile(plan: RestorePlan): string {
  return join(plan.workDirectories[0] ?? '', 'definition.kept');
}

/** Gives a restored machine its autostart, once: afterwards it is the owner's to change. */
export async function giveAutostart(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { plan, autostartGiven } = context.facts;
  if (autostartGiven) return;
  await unguardMachine(hypervisor, plan.machine.uuid, plan);
  context.commit({ autostartGiven: true });
}

/** Makes checked copies of everything beside its destination. Until this is complete nothing is touched. */
async function stage({ hypervisor, storage }: RestoreDependencies, context: Context): Promise<void> {
  const { plan } = context.facts;
  const stored = storage(plan.backup.storage);
  const { signal } = context;
  context.commit({ staged: false, swapped: false, starting: false });
  for (const directory of plan.workDirectories) await makeDirectoryDurable(directory, workDirectoryMode);
  const totalBytes = plan.volumes.reduce(
    (sum, volume) => sum + volume.artifact.sizeBytes,
    plan.memory?.artifact.sizeBytes ?? 0,
  );
  let before = 0;
  const onProgress = (bytesDone: number): void =>
    context.report({ doneBytes: before + bytesDone, totalBytes });
  for (const volume of plan.volumes) {
    if (volume.served === null) await stageVolume(stored, volume, { signal, onProgress });
    else await stageOverlay(hypervisor, volume);
    before += volume.artifact.sizeBytes;
  }
  const others = [...(plan.nvram === null ? [] : [plan.nvram]), ...plainFilesOf(plan)];
  for (const { artifact, staged } of others)
    await stageFile(stored, artifact, staged, { signal, onProgress });
  for (const { artifact, staged, mode } of plan.extras)
    await stageFile(stored, artifact, staged, { signal, onProgress, owner: { uid: 0, gid: 0, mode } });
  if (plan.memory !== null && plan.kind !== 'files')
    await stageMemory(stored, plan, plan.memory, { signal, onProgress });
  const stagedMarks: Record<string, string> = {};
  for (const { staged } of replacementsOf(plan)) stagedMarks[staged] = await markOf(staged);
  context.learn({ staged: true, stagedMarks });
}

async function stageVolume(stored: RestoreStorage, volume: RestoredVolume, options: Reading): Promise<void> {
  const { artifact, staged, owner, encrypted } = volume;
  const as = encrypted ? 'opaque volume' : 'volume';
  await stageFile(stored, artifact, staged, { ...options, owner, as });
  await requireStandalone(volume);
  if (volume.asRaw) await makeRaw(volume, options.signal);
}

async function stageMemory(
  stored: RestoreStorage,
  plan: RestorePlan,
  memory: NonNullable<RestorePlan['memory']>,
  reading: Reading,
): Promise<void> {
  if (!memory.adapted) return stageFile(stored, memory.artifact, memory.staged, reading);
  await rm(memory.staged, { force: true });
  await stageAdapted(stored, memory, {
    ...reading,
    definition: (original) => restoredDefinition(plan, original),
  });
}

/** The steps of a restore to a machine, in their only order. */
export function restoreSteps(
  dependencies: RestoreDependencies,
  facts: RestoreFacts,
): readonly Step<RestoreFacts>[] {
  const { hypervisor } = dependencies;
  if (facts.plan.kind === 'files') return fileSteps(dependencies);
  return [
    {
      name: 'stage',
      state: 'confirmed',
      cancellable: true,
      act: (context) => stage(dependencies, context),
    },
    {
      name: 'stop',
      state: 'restoring',
      cancellable: false,
      intend: () => ({ stopping: true }),
      act: async (context) => {
        const { plan } = context.facts;
        await stopPresent(hypervisor, plan);
        // Hours may have passed since the plan was made.
        if (!context.facts.swapping) await requireUnused(plan.volumes, plan.machine.uuid);
      },
    },
    {
      name: 'swap',
      state: 'restoring',
      cancellable: false,
      intend: () => ({ swapping: true }),
      act: async (context) => {
        const { plan } = context.facts;
        // Of a TPM's state not even the directory may be there.
        for (const { path } of plan.extras) await makeDirectoryDurable(dirname(path), 0o711);
        for (const replacement of replacementsOf(plan))
          await putInPlace(replacement, plan.kind === 'in-place');
        context.learn({ swapped: true });
      },
    },
    {
      name: 'define',
      state: 'restoring',
      cancellable: false,
      intend: () => ({ defining: true }),
      act: (context) => define(dependencies, context),
    },
    {
      name: 'start',
      state: 'restoring',
      reached: 'restored',
      cancellable: false,
      intend: () => ({ starting: true }),
      act: async (context) => {
        if (!context.facts.takenAsItRuns) await start(hypervisor, context);
        // It runs: from here on nothing is put back any more.
        context.commit({ started: true });
        // A host that crashes from here on starts it again by itself; not on a backup that nobody serves yet.
        if (!context.facts.plan.instant) await giveAutostart(hypervisor, context);
      },
    },
    ...(facts.plan.instant ? instantSteps(hypervisor) : []),
    {
      name: 'cleanup',
      state: 'restored',
      cancellable: false,
      act: async (context) => {
        await giveAutostart(hypervisor, context);
        await keepSafetyCopies(context.facts.plan, keptDefinitionFile(context.facts.plan));
        await removeWorkDirectories(context.facts.plan);
      },
    },
  ];
}

async function stopPresent(hypervisor: Hypervisor, plan: RestorePlan): Promise<void> {
  if (plan.present === null) return;
  const { uuid } = plan.machine;
  const kept = keptDefinitionFile(plan);
  if (!(await exists(kept))) {
    await writeFileDurable(kept, await hypervisor.definition(uuid, 'persistent-secure'), { mode: 0o600 });
  }
  await hypervisor.setAutostart(uuid, false);
  const { status, hasManagedSave } = await hypervisor.machine(uuid);
  const snapshots = await hypervisor.snapshotNames(uuid);
  if (hasManagedSave || snapshots.length > 0) {
    throw new RestoreError(
      hasManagedSave ? 'MACHINE_HAS_MANAGED_SAVE' : 'MACHINE_HAS_SNAPSHOTS',
      `${plan.machine.name} was saved or snapshotted since the plan was made; that would not fit the restored disks`,
      {
        hint: `nothing was changed; virsh managedsave-remove, or virsh snapshot-list ${plan.machine.name}, then restore again`,
      },
    );
  }
  if (status.state !== 'shut-off' && status.state !== 'crashed') await hypervisor.powerOff(uuid);
}

async function define({ hypervisor, storage }: RestoreDependencies, context: Context): Promise<void> {
  const { plan } = context.facts;
  if (plan.scope === 'volumes') {
    const present = DomainXml.parse(await readFile(keptDefinitionFile(plan), 'utf8'));
    // What it says of a chain is not true of the restored volumes any more.
    present.removeBackingStores(plan.volumes.map(({ target }) => target));
    return hypervisor.define(present.toString());
  }
  // The machine is off: a storage that does not answer any more must not keep it so.
  const stored = await storage(plan.backup.storage).readText(plan.definition);
  const definition = DomainXml.parse(restoredDefinition(plan, stored));
  // Stored definitions hold no secrets; the memory state and the machine as it was have them.
  if (plan.memory !== null)
    definition.takeSecretsFrom(DomainXml.parse(await hypervisor.stateDefinition(plan.memory.staged)));
  else if (plan.present !== null)
    definition.takeSecretsFrom(DomainXml.parse(await readFile(keptDefinitionFile(plan), 'utf8')));
  await hypervisor.define(definition.toString());
}

async function start(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { plan } = context.facts;
  const { name } = plan.machine;
  if (plan.instant) await ensureAllServed(hypervisor, plan);
  try {
    if (plan.start === 'boot') await boot(hypervisor, plan);
    if (plan.start === 'resume') await resumeOrBoot(hypervisor, context);
  } catch (error) {
    throw new RestoreError('CANNOT_START_MACHINE', `${name} could not be started: ${messageOf(error)}`, {
      cause: error,
      hint:
        plan.start === 'resume'
          ? 'what was there before is put back; try --start boot: the memory state may not fit this host'
          : 'what was there before is put back; the machine log in /var/log/libvirt/qemu says more',
    });
  }
}

/**
 * Goes on with the memory state; where this host cannot offer the processor that it was saved with, the machine is
 * booted on the disks of that instant instead: nothing has run on them.
 */
async function resumeOrBoot(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { plan, restoreDeadlineMs } = context.facts;
  const { uuid, name } = plan.machine;
  if (plan.memory === null) return;
  try {
    await hypervisor.restoreState({ file: plan.memory.staged, paused: true, deadlineMs: restoreDeadlineMs });
  } catch (error) {
    const { staged } = plan.memory;
    const needed = async (): Promise<ProcessorRequirement | null> => {
      const { definition, cookie } = await readSaveImage(staged);
      return requiredProcessor(definition, cookie);
    };
    if (!(await isProcessorRefusal(hypervisor, error, needed))) throw error;
    context.warn(
      `${name} is booted, without its memory: this host cannot offer its processor (${messageOf(error)})`,
    );
    context.commit({ bootedInstead: true });
    return bootOnThisHost(hypervisor, context);
  }
  await requireRestoredImages(hypervisor, plan);
  if (plan.runningAtPoint) await hypervisor.resume(uuid);
}

/** A definition that names the missing processor too gets the one that this host has. */
async function bootOnThisHost(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { plan } = context.facts;
  try {
    await boot(hypervisor, plan);
  } catch (error) {
    const named = async (): Promise<ProcessorRequirement | null> =>
      requiredProcessor(await hypervisor.definition(plan.machine.uuid, 'persistent'), null);
    if (!(await isProcessorRefusal(hypervisor, error, named))) throw error;
    const definition = DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'persistent-secure'));
    definition.useProcessorOfHost();
    await hypervisor.define(definition.toString());
    context.warn(
      `${plan.machine.name} has the processor model of this host now: its own is not offered here`,
    );
    await boot(hypervisor, plan);
  }
}

async function boot(hypervisor: Hypervisor, plan: RestorePlan): Promise<void> {
  const { uuid } = plan.machine;
  if (!plan.instant) return hypervisor.start(uuid);
  await hypervisor.start(uuid, { paused: true });
  await requireRestoredImages(hypervisor, plan);
  await hypervisor.resume(uuid);
}

/** A restore of files only: nothing is defined, nothing is overwritten. */
function fileSteps(dependencies: RestoreDependencies): readonly Step<RestoreFacts>[] {
  const place = async (context: Context): Promise<void> => {
    const { plan } = context.facts;
    for (const replacement of replacementsOf(plan)) await putInPlace(replacement, false);
    context.learn({ swapped: true });
  };
  return [
    {
      name: 'stage',
      state: 'confirmed',
      cancellable: true,
      act: (context) => stage(dependencies, context),
    },
    {
      name: 'swap',
      state: 'restoring',
      reached: 'restored',
      cancellable: false,
      intend: () => ({ swapping: true }),
      act: place,
    },
    {
      name: 'cleanup',
      state: 'restored',
      cancellable: false,
      act: (context) => removeWorkDirectories(context.facts.plan),
    },
  ];
}
