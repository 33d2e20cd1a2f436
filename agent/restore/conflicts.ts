import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import type { Conflict, RestorePlan } from './plan.ts';

/** What a restore replaces or gets in the way of, for the operator to see before it happens. */
export async function findConflicts(
  hypervisor: Hypervisor,
  machines: readonly MachineSummary[],
  plan: RestorePlan,
  definition: DomainXml,
): Promise<readonly Conflict[] & RestorePlan['conflicts']> {
  const conflicts: Conflict[] = [];
  if (plan.present?.running)
    conflicts.push({
      kind: 'machine',
      message: `${plan.machine.name} runs: it is powered off, and what it did since ${plan.backup.pointInTime} is lost`,
    });
  if (plan.present !== null)
    conflicts.push({
      kind: 'definition',
      message: `the definition of ${plan.machine.name} is replaced by the one of that time`,
    });
  for (const volume of plan.volumes) {
    if (volume.existed)
      conflicts.push({
        kind: 'path',
        message:
          plan.start === 'none'
            ? `${volume.image} is replaced, and the present image removed`
            : `${volume.image} is replaced; the present image is kept until the restored machine has started`,
      });
  }
  if (plan.nvram?.existed) conflicts.push({ kind: 'nvram', message: `${plan.nvram.path} is replaced` });
  if (plan.linksDown) {
    conflicts.push({
      kind: 'network',
      message: `the resumed guest still uses the addresses of the original: its interfaces start disconnected (${plan.macs.map((mac) => `virsh domif-setlink ${plan.machine.name} ${mac} up`).join('; ')})`,
    });
  }
  if (plan.kind === 'in-place') conflicts.push(...(await sharedMacs(hypervisor, machines, plan, definition)));
  return conflicts;
}

async function sharedMacs(
  hypervisor: Hypervisor,
  machines: readonly MachineSummary[],
  plan: RestorePlan,
  definition: DomainXml,
): Promise<Conflict[]> {
  const ours = new Set(
    definition.interfaces.flatMap(({ mac }) => (mac === undefined ? [] : [mac.toLowerCase()])),
  );
  const conflicts: Conflict[] = [];
  for (const machine of machines) {
    if (machine.uuid === plan.machine.uuid) continue;
    const other = DomainXml.parse(await hypervisor.definition(machine.uuid, 'persistent'));
    const shared = other.interfaces.find(({ mac }) => mac !== undefined && ours.has(mac.toLowerCase()));
    if (shared !== undefined)
      conflicts.push({ kind: 'mac', message: `${machine.name} has the same MAC ${shared.mac}` });
  }
  return conflicts;
}
