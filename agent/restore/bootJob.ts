import { chmod, chown, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { errorRecord, type StillpointError } from '../../common/errors.ts';
import { createOverlay } from '../../common/qemuImage.ts';
import type { RestoreStorage } from './restoreSteps.ts';
import type { Verification } from '../../storage/verification.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { patiently } from '../hypervisor/patience.ts';
import { JobError } from '../jobs/errors.ts';
import type { JobDefinition, Settlement, Step, StepContext } from '../jobs/step.ts';
import { type BootFacts, bootFactsSchema, type BootPlan, isolatedDefinition } from './bootPlan.ts';
import { takePicture, watchGuest } from './bootWatch.ts';
import { stageFile } from './files.ts';
import { statusOf } from './machineStatus.ts';
import { stageAdapted } from './stagedMemory.ts';
import { endServer, ensureServed } from './served.ts';

type Context = StepContext<BootFacts>;

/** What a verification by starting needs beside the hypervisor. */
export interface BootDependencies {
  readonly hypervisor: Hypervisor;
  /** A storage by its name. */
  readonly storage: (name: string) => RestoreStorage;
  /** Stores the result beside the backup. */
  readonly store: (
    plan: BootPlan,
    result: Omit<Verification, 'picture'>,
    picture: string | null,
  ) => Promise<void>;
}

/** Starts a backup where it can reach nothing, watches it, and takes everything away again, whatever happens. */
export function bootJob(dependencies: BootDependencies): JobDefinition<BootFacts> {
  return {
    kind: 'verify',
    parse: (record) => bootFactsSchema.parse(record),
    steps: () => bootSteps(dependencies),
    settle: (context, cause) => settle(dependencies, context, cause),
  };
}

function bootSteps({ hypervisor, storage, store }: BootDependencies): readonly Step<BootFacts>[] {
  return [
    {
      name: 'prepare',
      state: 'confirmed',
      cancellable: true,
      act: (context) => prepare(hypervisor, storage(context.facts.plan.backup.storage), context),
    },
    {
      name: 'watch',
      state: 'restoring',
      cancellable: true,
      act: async (context) => {
        const { plan } = context.facts;
        const startedAt = performance.now();
        const verdict = await startAndWatch(hypervisor, storage(plan.backup.storage), context);
        const picture = await takePicture(hypervisor, plan);
        if (picture !== null) await rename(picture.replace(/\.[a-z]+$/, ''), picture);
        const result = {
          at: new Date().toISOString(),
          start: plan.start,
          durationMs: Math.round(performance.now() - startedAt),
          ...verdict,
        };
        context.learn({ result, picture });
      },
    },
    {
      name: 'store',
      state: 'restored',
      cancellable: false,
      act: async ({ facts }) => {
        if (facts.result !== undefined) await store(facts.plan, facts.result, facts.picture ?? null);
      },
    },
    {
      name: 'cleanup',
      state: 'restored',
      cancellable: false,
      act: ({ facts }) => takeAway(hypervisor, facts.plan),
    },
  ];
}

async function prepare(hypervisor: Hypervisor, stored: RestoreStorage, context: Context): Promise<void> {
  const { plan } = context.facts;
  const { signal } = context;
  const user = await hypervisor.defaultUser();
  await mkdir(plan.directory, { mode: 0o711 });
  await chmod(plan.directory, 0o711);
  for (const {
    target,
    artifact,
    format,
    socket,
    url,
    overlay,
    virtualSizeBytes,
    repository,
  } of plan.volumes) {
    await ensureServed({ target, artifact, format, socket, repository }, user);
    await createOverlay(overlay, { path: url, format: 'raw' }, virtualSizeBytes);
  }
  if (plan.nvram !== null) await stageFile(stored, plan.nvram.artifact, plan.nvram.path, { signal });
  await writeFile(plan.serialLog, '', { mode: 0o600 });
  await chown(plan.serialLog, user.uid, user.gid);
  if (plan.memory === null) return;
  const totalBytes = plan.memory.artifact.sizeBytes;
  await stageAdapted(stored, plan.memory, {
    definition: (original) => isolatedDefinition(plan, original),
    signal,
    onProgress: (doneBytes) => context.report({ doneBytes, totalBytes }),
  });
}

/** A machine that libvirt or QEMU refuses is a result, and the one that matters most. */
async function startAndWatch(
  hypervisor: Hypervisor,
  stored: RestoreStorage,
  context: Context,
): Promise<Awaited<ReturnType<typeof watchGuest>>> {
  const { plan, restoreDeadlineMs } = context.facts;
  const { uuid } = plan.machine;
  try {
    if (plan.memory === null) {
      await hypervisor.startTransient(isolatedDefinition(plan, await stored.readText(plan.definition)));
    } else {
      await hypervisor.restoreState({
        file: plan.memory.staged,
        paused: true,
        deadlineMs: restoreDeadlineMs,
      });
      await hypervisor.resume(uuid);
    }
  } catch (error) {
    const { code, message, retryable } = errorRecord(error);
    // That libvirt is away says nothing about the backup.
    if (retryable || code === 'HYPERVISOR_UNREACHABLE') throw error;
    return { ok: false, evidence: null, detail: `it does not start: ${message}` };
  }
  return watchGuest(hypervisor, plan, context.signal);
}

/** Whatever happened: nothing of it is left. The backup is as it was. */
async function settle(
  { hypervisor }: BootDependencies,
  context: Context,
  cause: StillpointError | undefined,
): Promise<Settlement> {
  const { plan } = context.facts;
  await patiently('taking the verified machine away', context, () => takeAway(hypervisor, plan));
  const isCancelled = cause instanceof JobError ? cause.code === 'CANCELLED' : context.cancelRequested;
  if (isCancelled) return { kind: 'end', state: 'cancelled' };
  const error =
    cause ??
    new JobError('AGENT_DIED', 'the agent that verified this backup died; nothing of its work is left', {
      hint: `stillpoint verify ${plan.backup.id} --boot`,
      retryable: true,
    });
  return { kind: 'end', state: 'failed', error: errorRecord(error) };
}

async function takeAway(hypervisor: Hypervisor, plan: BootPlan): Promise<void> {
  const status = await statusOf(hypervisor, plan.machine.uuid);
  if (status !== undefined && status.state !== 'shut-off') await hypervisor.powerOff(plan.machine.uuid);
  for (const { socket } of plan.volumes) await endServer(socket);
  await rm(plan.sockets, { recursive: true, force: true });
  await rm(plan.directory, { recursive: true, force: true });
}
