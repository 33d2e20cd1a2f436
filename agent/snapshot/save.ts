import { messageOf } from '../../common/errors.ts';
import { isTestSwitchOn } from '../../common/testSwitches.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { requireExpectedChains } from './chain.ts';
import { SnapshotError } from './errors.ts';
import type { SavePlan } from './plan.ts';
import { makeStateDurable } from './stateFile.ts';

/**
 * The definition that goes into the save image: the migratable one, without `<backingStore>`. With it, libvirt
 * would start the machine on the overlay alone, and the guest would read zeros (trap 1).
 */
export async function correctedDefinition(hypervisor: Hypervisor, uuid: string): Promise<string> {
  const definition = DomainXml.parse(await hypervisor.definition(uuid, 'migratable'));
  if (!isTestSwitchOn('keep-backing-stores')) definition.removeBackingStores();
  return definition.toString();
}

/** The definition that is stored with a backup: what the next start would use, without any secret. */
export async function publicDefinition(hypervisor: Hypervisor, uuid: string): Promise<string> {
  const definition = DomainXml.parse(await hypervisor.definition(uuid, 'persistent'));
  definition.removeBackingStores();
  definition.stripSecrets();
  return definition.toString();
}

/**
 * Saves CPU and memory; the machine is stopped afterwards.
 * @throws SnapshotError CANNOT_SAVE_MACHINE_STATE; HypervisorError OPERATION_ABORTED when `signal` ended it
 */
export async function saveMachine(
  hypervisor: Hypervisor,
  plan: SavePlan,
  options: { readonly definition: string; readonly deadlineMs: number; readonly signal: AbortSignal },
): Promise<void> {
  try {
    await hypervisor.save(plan.machine.uuid, { file: plan.stateFile, ...options });
  } catch (error) {
    if (options.signal.aborted) throw error;
    const noSpace = error instanceof HypervisorError && error.code === 'NO_SPACE';
    throw new SnapshotError(
      'CANNOT_SAVE_MACHINE_STATE',
      `${plan.machine.name} could not be saved: ${messageOf(error)}`,
      {
        cause: error,
        hint: noSpace
          ? `free space for its memory: df -h ${plan.stateFile}`
          : `journalctl -u libvirtd; the machine's log in /var/log/libvirt/qemu`,
      },
    );
  }
  // On a RAM disk there is nothing to make durable.
  if (!plan.stateOnRamDisk) await makeStateDurable(plan.stateFile);
}

/**
 * Brings the machine back from its state, stopped, on its new chain, and compares the chain before anything
 * can run.
 * @throws SnapshotError CANNOT_RESTORE_MACHINE, WRONG_BLOCK_GRAPH
 */
export async function restorePaused(
  hypervisor: Hypervisor,
  plan: SavePlan,
  deadlineMs: number,
): Promise<void> {
  try {
    await hypervisor.restoreState({ file: plan.stateFile, paused: true, deadlineMs });
  } catch (error) {
    throw new SnapshotError(
      'CANNOT_RESTORE_MACHINE',
      `${plan.machine.name} could not be brought back: ${messageOf(error)}`,
      {
        cause: error,
        hint: `its memory is in ${plan.stateFile} and its disks are complete; Stillpoint tries again, then puts the old images back`,
        retryable: true,
      },
    );
  }
  if (!isTestSwitchOn('keep-backing-stores'))
    await requireExpectedChains(hypervisor, plan.machine.uuid, plan.volumes);
}
