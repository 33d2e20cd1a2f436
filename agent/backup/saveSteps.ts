import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { checkpointNameOf } from '../hypervisor/ourCheckpoints.ts';
import type { Step, StepContext } from '../jobs/step.ts';
import type { ChosenStorages } from '../retain/storageChoice.ts';
import { gatherExtras } from '../snapshot/extras.ts';
import { guardMachine, readOwnerSettings } from '../snapshot/guard.ts';
import { messageOf } from '../../common/errors.ts';
import { writeFileDurable } from '../../common/files.ts';
import { definitionFile } from '../retain/retain.ts';
import { PauseMeter } from '../snapshot/pause.ts';
import type { SavePlan } from '../snapshot/plan.ts';
import { planSave } from '../snapshot/preflight.ts';
import { correctedDefinition, publicDefinition, restorePaused, saveMachine } from '../snapshot/save.ts';
import { stateFileBirth, stowState } from '../snapshot/stateFile.ts';
import { inodeOf, prepareWorkFiles, swapImages } from '../snapshot/workFiles.ts';
import { markBefore } from './checkpoints.ts';
import type { BackupFacts } from './facts.ts';

/** The plan of a job that is past its preflight. */
export function planOf(facts: BackupFacts): SavePlan {
  if (facts.plan === undefined) throw new Error('the job has no plan yet');
  return facts.plan;
}

/** How the owner had the machine, in a job that is past its preparation. */
export function beforeOf(facts: BackupFacts): NonNullable<BackupFacts['before']> {
  if (facts.before === undefined) throw new Error('the job has not looked at its machine yet');
  return facts.before;
}

export interface SaveStepDependencies {
  readonly hypervisor: Hypervisor;
  /** What the other unfinished jobs are still going to write to the RAM disk. */
  readonly ramDiskReservedBytes: (jobId: string) => number;
  /** Checks that the storages of the job can take what the plan will bring. */
  readonly checkStorages: (facts: BackupFacts, plan: SavePlan) => Promise<readonly string[]>;
  /** Chooses anew among the storages of a group, by what the plan will bring. */
  readonly chooseStorages: (facts: BackupFacts, plan: SavePlan) => Promise<ChosenStorages>;
}

/** The steps that make T1, and what must be closed when they fail. */
export interface SaveSteps {
  readonly steps: readonly Step<BackupFacts>[];
  /** Stops listening for the events of the pause. */
  close(): Promise<void>;
}

/** The steps that make T1 in mode `save`, in their only order: until `resume` the guest stands still. */
export function saveSteps(dependencies: SaveStepDependencies): SaveSteps {
  const { hypervisor } = dependencies;
  let meter: PauseMeter | undefined;
  let warm: Disposable | undefined;

  const preflight = async (context: StepContext<BackupFacts>): Promise<void> => {
    const { settings, machine } = context.facts;
    const request = { jobId: context.jobId, machineUuid: machine.uuid, ...settings };
    const wanted = settings.incremental ? checkpointNameOf(context.facts.backupId) : null;
    let plan: SavePlan;
    let ramDiskReservedBytes: number;
    do {
      ramDiskReservedBytes = dependencies.ramDiskReservedBytes(context.jobId);
      plan = await planSave(hypervisor, { ...request, checkpoint: wanted, ramDiskReservedBytes });
      // Now others see it; who planned at the same moment has been seen by nobody, and is looked for again.
      context.commit({ plan });
    } while (plan.stateOnRamDisk && dependencies.ramDiskReservedBytes(context.jobId) > ramDiskReservedBytes);
    context.learn({ settings: { ...settings, ...(await dependencies.chooseStorages(context.facts, plan)) } });
    const storageWarnings = await dependencies.checkStorages(context.facts, plan);
    const warnings = [...plan.warnings, ...storageWarnings];
    for (const warning of warnings) context.warn(warning);
    context.learn({ warnings: [...context.facts.warnings, ...warnings] });
  };

  // Of the image, whose bitmap libvirt must know; the one of the overlay is made with it.
  const checkpoint = async (context: StepContext<BackupFacts>): Promise<void> => {
    const plan = planOf(context.facts);
    if (plan.checkpoint === null) return;
    const refusal = await markBefore(hypervisor, plan, plan.checkpoint);
    if (refusal === null) return;
    context.warn(refusal);
    context.learn({
      plan: { ...plan, checkpoint: null },
      warnings: [...context.facts.warnings, refusal],
    });
  };

  const prepare = async (context: StepContext<BackupFacts>): Promise<void> => {
    const plan = planOf(context.facts);
    await prepareWorkFiles(plan);
    await writeFileDurable(definitionFile(plan), await publicDefinition(hypervisor, plan.machine.uuid), {
      mode: 0o600,
    });
    await gatherExtras(hypervisor, plan);
    const overlayInodes: Record<string, string> = {};
    for (const { target, overlay } of plan.volumes) overlayInodes[target] = await inodeOf(overlay);
    context.learn({ prepared: true, overlayInodes });
  };

  const guard = async (context: StepContext<BackupFacts>): Promise<void> => {
    const { uuid } = context.facts.machine;
    const before = await readOwnerSettings(hypervisor, uuid);
    // Durable before anything of the machine is changed, and as late as can be: the owner may suspend it.
    context.commit({ before });
    await guardMachine(hypervisor, uuid, before);
  };

  const save = async (context: StepContext<BackupFacts>): Promise<void> => {
    const plan = planOf(context.facts);
    warm = await hypervisor.warmUp();
    meter = await PauseMeter.start(hypervisor, plan.machine.uuid);
    const definition = await correctedDefinition(hypervisor, plan.machine.uuid);
    await saveMachine(hypervisor, plan, {
      definition,
      deadlineMs: context.facts.settings.saveDeadlineMs,
      signal: context.signal,
    });
    const stoppedAt = meter.stoppedAt ?? (await stateFileBirth(plan.stateFile));
    context.learn({ pointInTime: stoppedAt.toISOString() });
  };

  const resume = async (context: StepContext<BackupFacts>): Promise<void> => {
    const { uuid } = planOf(context.facts).machine;
    if (beforeOf(context.facts).running) await hypervisor.resume(uuid);
    context.learn({
      frozenPoint: true,
      vcpusHeld: false,
      pauseMs: await pauseOf(meter, beforeOf(context.facts).running),
    });
    await close();
  };

  const stow = async (context: StepContext<BackupFacts>): Promise<void> => {
    if (context.facts.givenUp !== undefined) return;
    const plan = planOf(context.facts);
    try {
      await stowState(plan, {
        onProgress: (doneBytes) => context.report({ doneBytes, totalBytes: plan.memoryBytes }),
      });
    } catch (error) {
      // The merge must not wait for it: the RAM disk keeps it until it is stored.
      const warning = `the memory stays on the RAM disk until it is stored: ${messageOf(error)}`;
      context.warn(warning);
      context.learn({ warnings: [...context.facts.warnings, warning] });
    }
  };

  const close = async (): Promise<void> => {
    await meter?.[Symbol.asyncDispose]();
    meter = undefined;
    warm?.[Symbol.dispose]();
    warm = undefined;
  };

  const steps: readonly Step<BackupFacts>[] = [
    {
      name: 'preflight',
      state: 'initialized',
      cancellable: true,
      pausable: 'before',
      deadlineMs: 300_000,
      act: preflight,
    },
    {
      name: 'checkpoint',
      state: 'snapshotting',
      cancellable: true,
      intend: () => ({ checkpointBegun: true }),
      act: checkpoint,
    },
    { name: 'prepare', state: 'snapshotting', cancellable: true, deadlineMs: 300_000, act: prepare },
    {
      name: 'guard',
      state: 'snapshotting',
      cancellable: false,
      act: guard,
    },
    { name: 'save', state: 'snapshotting', cancellable: true, act: save },
    {
      name: 'swap',
      state: 'snapshotting',
      cancellable: false,
      act: (context) => swapImages(planOf(context.facts)),
    },
    {
      name: 'restore',
      state: 'snapshotting',
      cancellable: false,
      intend: () => ({ vcpusHeld: true }),
      act: (context) =>
        restorePaused(hypervisor, planOf(context.facts), context.facts.settings.restoreDeadlineMs),
    },
    {
      name: 'resume',
      state: 'snapshotting',
      reached: 'snapshotted',
      cancellable: false,
      intend: () => ({ resuming: true }),
      act: resume,
    },
    { name: 'stow', state: 'snapshotted', cancellable: false, act: stow },
  ];
  return { steps, close };
}

/** The pause, as soon as the event of its end is here; a machine that its owner had suspended has none. */
async function pauseOf(meter: PauseMeter | undefined, running: boolean): Promise<number | null> {
  if (meter === undefined || !running) return null;
  return meter.waitForPause(2_000);
}
