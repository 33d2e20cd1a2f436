import { setTimeout as sleep } from 'node:timers/promises';
import type { NbdError } from '../../nbd/errors.ts';
import type { Hypervisor, MachineState } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import { socketPathOf } from './pullBackup.ts';
import type { ReadPlan } from './readPlan.ts';

/** QEMU closes its connections before libvirt knows that it ends; it takes libvirt less than this to see it. */
const settleMs = 5_000;
const lookMs = 100;
/** `shutting-down` lasts long with libvirt 9.0: a guest that powers off during a backup is in it for 27 s. */
const downStates: readonly MachineState[] = ['shutting-down', 'shut-off', 'crashed'];

/**
 * Why QEMU stopped serving the volumes of a plan: the machine went off, or somebody ended the backup; otherwise the
 * error itself.
 */
export async function whyExportWasLost(
  hypervisor: Hypervisor,
  plan: ReadPlan,
  error: NbdError,
): Promise<NbdError | SnapshotError> {
  const { uuid, name } = plan.machine;
  // A server that answers has not gone away.
  if (error.code !== 'NBD_CLOSED' && error.code !== 'NBD_UNREACHABLE') return error;
  const giveUpAt = performance.now() + settleMs;
  do {
    const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === uuid);
    if (machine === undefined || downStates.includes(machine.status.state)) {
      const how = machine === undefined ? 'it is gone from libvirt' : machine.status.state;
      return interfered(`${name} went off (${how}) while it was read, and T1 with it`, error, {
        hint: 'start the backup again: mode "offline" reads a machine that is off',
      });
    }
    await sleep(lookMs);
  } while (performance.now() < giveUpAt);
  const backup = await hypervisor.currentBackup(uuid);
  if (backup?.socketPath === socketPathOf(plan)) return error;
  return interfered(`somebody ended the backup of ${name} in QEMU while it was read, and T1 with it`, error, {
    hint: 'start the backup again; virsh domjobabort and other backup programs end it',
  });
}

function interfered(message: string, cause: NbdError, { hint }: { readonly hint: string }): SnapshotError {
  return new SnapshotError('MACHINE_INTERFERED', message, { cause, hint, retryable: true });
}
