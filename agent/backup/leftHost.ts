import type { ErrorRecord } from '../../common/errors.ts';
import { errorRecord } from '../../common/errors.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { isMigratedAway } from '../hypervisor/migration.ts';
import type { JobDefinition } from '../jobs/step.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import { findMachine } from './world.ts';

interface PlacedFacts {
  readonly machine: { readonly uuid: string; readonly name: string };
  readonly settings: { readonly mode: string; readonly template?: unknown };
}

/** Only the host that a machine is on acts on it. */
export function machineLeft(name: string, how: 'migrated' | 'gone', why = ''): SnapshotError {
  const what = how === 'migrated' ? 'was migrated to another host' : 'is not known to libvirt here any more';
  return new SnapshotError('MACHINE_LEFT', `${name} ${what}${why === '' ? '' : ` (${why})`}`, {
    hint: `the host that has it now backs it up, where its own configuration says so; if it is nowhere else: virsh start ${name}, or virsh undefine ${name}`,
  });
}

/** @throws SnapshotError MACHINE_LEFT; HypervisorError */
export async function requireHere(
  hypervisor: Hypervisor,
  { uuid, name }: { readonly uuid: string; readonly name: string },
): Promise<void> {
  const machine = await findMachine(hypervisor, uuid);
  if (machine === undefined) throw machineLeft(name, 'gone');
  if (isMigratedAway(machine.status)) throw machineLeft(name, 'migrated');
}

/** A job that says, when it has failed because its machine has left this host, that it was this. */
export function withLeaving<Facts extends PlacedFacts>(
  definition: JobDefinition<Facts>,
  hypervisor: Hypervisor,
): JobDefinition<Facts> {
  return {
    ...definition,
    settle: async (context, cause) => {
      const settlement = await definition.settle(context, cause);
      if (settlement.kind !== 'end' || settlement.state !== 'failed') return settlement;
      const { machine, settings } = context.facts;
      if (settings.template !== undefined) return settlement;
      const left = await whyLeft(hypervisor, machine, settlement.error);
      return left === undefined ? settlement : { ...settlement, error: left };
    },
  };
}

async function whyLeft(
  hypervisor: Hypervisor,
  { uuid, name }: PlacedFacts['machine'],
  failure: ErrorRecord | undefined,
): Promise<ErrorRecord | undefined> {
  try {
    const machine = await findMachine(hypervisor, uuid);
    if (machine !== undefined && !isMigratedAway(machine.status)) return undefined;
    return errorRecord(machineLeft(name, machine === undefined ? 'gone' : 'migrated', failure?.message));
  } catch (error) {
    // Where the machine is cannot be told now: the failure itself says more.
    if (error instanceof HypervisorError) return undefined;
    throw error;
  }
}
