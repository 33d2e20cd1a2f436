import { setTimeout as sleep } from 'node:timers/promises';
import type { Hypervisor, MachineStatus } from '../hypervisor/hypervisor.ts';
import { currentBootId } from '../jobs/owner.ts';
import type { StepContext } from '../jobs/step.ts';
import type { RestoreFacts } from './plan.ts';

/** How long recovery waits for a start that a dead agent had asked for. */
const waitDeadlineMs = 15 * 60_000;
const waitPollMs = 250;

/**
 * The host crashed after the machine was started and before it had its autostart back: it is started now, as the
 * host would have done.
 */
export async function startAsHost(hypervisor: Hypervisor, context: StepContext<RestoreFacts>): Promise<void> {
  const { plan, autostartGiven, bootId } = context.facts;
  if (autostartGiven || !plan.autostart || plan.start === 'none' || bootId === currentBootId()) return;
  const status = await statusOf(hypervisor, plan.machine.uuid);
  if (status?.state === 'shut-off') await hypervisor.start(plan.machine.uuid);
}

/** The status once libvirt has ended what a dead agent had begun; a start takes seconds, its deadline is minutes. */
export async function settledStatus(
  hypervisor: Hypervisor,
  uuid: string,
): Promise<MachineStatus | undefined> {
  const deadline = performance.now() + waitDeadlineMs;
  for (;;) {
    const status = await statusOf(hypervisor, uuid);
    if (status?.state !== 'paused' || status.reason !== 'starting-up' || performance.now() > deadline)
      return status;
    await sleep(waitPollMs);
  }
}

export async function statusOf(hypervisor: Hypervisor, uuid: string): Promise<MachineStatus | undefined> {
  return (await hypervisor.machines()).find((machine) => machine.uuid === uuid)?.status;
}
