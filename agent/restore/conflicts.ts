import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import { unlessGone } from '../hypervisor/unlessGone.ts';
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
  if (plan.scope === 'volumes' && plan.present !== null) {
    const others = otherVolumes(plan, definition);
    const remark =
      others.length === 0 ? '' : `; ${others.join(', ')} stay as they are, and are of another time`;
    conflicts.push({
      kind: 'volumes',
      message: `only ${plan.volumes.map(({ target }) => target).join(', ')} go back to that instant, without memory${remark}`,
    });
  }
  if (plan.scope === 'machine' && plan.present !== null)
    conflicts.push({
      kind: 'definition',
      message: `the definition of ${plan.machine.name} is replaced by the one of that time; ${fate('the present one', plan.definitionSafetyCopy)}`,
    });
  for (const { image, existed, safetyCopy } of plan.volumes) {
    if (existed)
      conflicts.push({
        kind: 'path',
        message: `${image} is replaced; ${fate('the present image', safetyCopy)}`,
      });
  }
  for (const { target, image, keepsPool } of plan.kind === 'files' ? [] : plan.volumes) {
    const now = definition.volumes.find((volume) => volume.target === target)?.sourceKind ?? 'file';
    if (now !== 'file' && !keepsPool)
      conflicts.push({
        kind: 'volumes',
        message: `${target} was a ${now} volume, and becomes the file ${image}`,
      });
  }
  if (plan.nvram?.existed)
    conflicts.push({
      kind: 'nvram',
      message: `${plan.nvram.path} is replaced; ${fate('the present one', plan.nvram.safetyCopy)}`,
    });
  for (const { path, existed, safetyCopy } of plan.extras)
    if (existed)
      conflicts.push({
        kind: 'path',
        message: `${path} is replaced; ${fate('the present one', safetyCopy)}`,
      });
  if (plan.linksDown) {
    conflicts.push({
      kind: 'network',
      message: `the resumed guest still uses the addresses of the original: its interfaces start disconnected (${plan.macs.map((mac) => `virsh domif-setlink ${plan.machine.name} ${mac} up`).join('; ')})`,
    });
  }
  if (plan.kind === 'in-place' && plan.scope === 'machine')
    conflicts.push(...(await sharedMacs(hypervisor, machines, plan, definition)));
  return conflicts;
}

/** What becomes of something that is replaced. */
function fate(what: string, safetyCopy: string | null): string {
  return safetyCopy === null
    ? `${what} is kept only until the restore has succeeded`
    : `${what} is kept as ${safetyCopy}`;
}

/** Disks of the machine that a restore of single volumes leaves alone. */
function otherVolumes(plan: RestorePlan, definition: DomainXml): readonly string[] {
  const restored = new Set(plan.volumes.map(({ target }) => target));
  const disks = definition.volumes.filter(({ device, readOnly }) => device === 'disk' && !readOnly);
  return disks.map(({ target }) => target).filter((target) => !restored.has(target));
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
    const text = await unlessGone(hypervisor.definition(machine.uuid, 'persistent'));
    if (text === undefined) continue;
    const other = DomainXml.parse(text);
    const shared = other.interfaces.find(({ mac }) => mac !== undefined && ours.has(mac.toLowerCase()));
    if (shared !== undefined)
      conflicts.push({ kind: 'mac', message: `${machine.name} has the same MAC ${shared.mac}` });
  }
  return conflicts;
}
