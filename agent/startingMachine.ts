import { setTimeout as sleep } from 'node:timers/promises';
import type { Hypervisor, MachineSummary } from './hypervisor/hypervisor.ts';

/** QEMU needs a second or two to begin; what takes longer is something else, such as a memory state that is loaded. */
const longestMs = 10_000;
const lookEveryMs = 100;

/**
 * A machine that is being started stands still for a moment, and has no mode that suits it: it is looked at until it
 * has begun, for 10 s at most. libvirt tells of a machine when it is defined and begins to start, so a schedule looks
 * at a new one just then.
 * @returns the machine as it is then
 * @throws HypervisorError MACHINE_NOT_FOUND, …
 */
export async function whenStarted(
  hypervisor: Pick<Hypervisor, 'machine'>,
  found: MachineSummary,
): Promise<MachineSummary> {
  const deadline = performance.now() + longestMs;
  let machine = found;
  while (isStarting(machine) && performance.now() < deadline) {
    await sleep(lookEveryMs);
    machine = await hypervisor.machine(machine.uuid);
  }
  return machine;
}

function isStarting({ status: { state, reason } }: MachineSummary): boolean {
  return state === 'paused' && reason === 'starting-up';
}
