import { patiently } from '../hypervisor/patience.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor, MachineStatus } from '../hypervisor/hypervisor.ts';
import { asStillpointError } from '../jobs/stepErrors.ts';
import type { StepContext } from '../jobs/step.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import { PauseMeter } from '../snapshot/pause.ts';
import type { Together } from '../snapshot/together.ts';

/** What a job knows that lets its machine stand still for others. */
interface HoldingFacts {
  readonly machine: { readonly uuid: string; readonly name: string };
  /** The vCPUs may stand still by our doing. */
  readonly vcpusHeld?: boolean | undefined;
}

type Context = StepContext<HoldingFacts>;

/** The event of the resumed vCPUs may come a little after libvirt's answer. */
const eventMs = 2_000;

/**
 * Makes T1 of one machine of a group by `begin`, while the vCPUs of all of them stand still.
 * @returns T1, the same for all, and how long this machine stood still
 * @throws SnapshotError GROUP_FAILED when another one cannot; what `begin` throws. The machine runs on in any case
 */
export async function beginTogether(
  hypervisor: Hypervisor,
  context: Context,
  together: Together,
  begin: () => Promise<unknown>,
): Promise<{ readonly at: Date; readonly pauseMs: number | null }> {
  const { machine } = context.facts;
  await using meter = await PauseMeter.start(hypervisor, machine.uuid);
  const { jobId, signal } = context;
  await together.meet('frozen', jobId, signal);
  try {
    await hold(hypervisor, context);
    await together.meet('stopped', jobId, signal);
    await begin();
    await requireStill(hypervisor, context, meter);
    await together.meet('begun', jobId, signal);
  } catch (error) {
    // The others stand still for as long as they do not know.
    together.fail(machine.name, asStillpointError(error));
    throw error;
  } finally {
    await letGo(hypervisor, context);
  }
  const pauseMs = context.facts.vcpusHeld === undefined ? null : await meter.waitForPause(eventMs);
  return { at: together.at, pauseMs };
}

/** T1 is that of the others only while nobody has let the machine run. @throws SnapshotError MACHINE_INTERFERED */
async function requireStill(hypervisor: Hypervisor, context: Context, meter: PauseMeter): Promise<void> {
  const { machine, vcpusHeld } = context.facts;
  if (vcpusHeld !== true) return;
  const { state } = await hypervisor.status(machine.uuid);
  if (state === 'paused' && meter.pauseMs === null) return;
  throw new SnapshotError(
    'MACHINE_INTERFERED',
    `somebody let ${machine.name} run before all machines of the group had their instant`,
    { hint: 'start the backup again; the pause was announced', retryable: true },
  );
}

/** Stops the vCPUs of a machine that runs. */
async function hold(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { uuid } = context.facts.machine;
  const { state } = await hypervisor.status(uuid);
  // Its owner has suspended it: it stays so.
  if (state === 'paused') return;
  context.commit({ vcpusHeld: true });
  await context.point('holding');
  await hypervisor.suspend(uuid);
  await context.point('held');
}

/**
 * Stopped by us, and not off or stopped for a reason of its own. `unknown` is what a libvirtd finds that was started
 * anew while QEMU stopped. One that runs may be about to stop: libvirt's answer to us was lost, not what it does.
 */
function mayBeHeld({ state, reason }: MachineStatus): boolean {
  return state === 'running' || (state === 'paused' && (reason === 'user' || reason === 'unknown'));
}

/** Lets a machine run that was stopped, or is about to be: waits for whatever libvirt does with it. */
export async function resumeHeld(hypervisor: Hypervisor, uuid: string): Promise<void> {
  try {
    await hypervisor.resume(uuid);
  } catch (error) {
    const refused = error instanceof HypervisorError && error.code === 'MACHINE_STATE_INVALID';
    // It was running all the time.
    if (!refused || (await hypervisor.status(uuid)).state !== 'running') throw error;
  }
}

/** Lets the vCPUs of a machine run that the job has stopped, or may have; also in recovery. */
export async function letGo(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { vcpusHeld, machine } = context.facts;
  if (vcpusHeld !== true) return;
  await patiently('resuming the machine', context, async () => {
    const found = (await hypervisor.machines()).find(({ uuid }) => uuid === machine.uuid);
    if (found !== undefined && mayBeHeld(found.status)) await resumeHeld(hypervisor, machine.uuid);
  });
  context.commit({ vcpusHeld: false });
}
