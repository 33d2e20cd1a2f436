import type { Agent } from '../../agent/agent.ts';
import type { ReplicationRule } from '../../agent/policyReplication.ts';
import { targetsOf, uncoveredMembers } from '../../config/storageGroups.ts';
import { errorRecord } from '../../common/errors.ts';
import type { MachineIdentity } from '../../storage/storage.ts';
import { type Check, ok, warn } from './check.ts';

/** Whether the copies that policies ask for were made. */
export async function checkReplications(agent: Agent): Promise<readonly Check[]> {
  let machines: readonly MachineIdentity[];
  try {
    machines = await agent.parts.hypervisor.machines();
  } catch {
    // libvirt has a check of its own.
    return [];
  }
  const checks: Check[] = [];
  for (const machine of machines.toSorted((a, b) => a.name.localeCompare(b.name)))
    for (const rule of rulesOf(agent, machine)) checks.push(await checkOne(agent, machine, rule));
  return [...checkCoverage(agent.parts.config), ...checks];
}

/** Whether copies of a group's backups are of all of its storages: whichever takes a backup. */
function checkCoverage(config: Agent['parts']['config']): readonly Check[] {
  return Object.entries(config.policies).flatMap(([name, { storages, replicate }]) => {
    const copies = replicate.map(({ to }) => to);
    const targets = storages ?? targetsOf(config).filter((one) => !copies.includes(one));
    return uncoveredMembers(config, targets, replicate).map(({ group, to, members }) =>
      warn(
        `copies of policy ${name}`,
        `a backup that goes to ${members.join(' or ')} of group ${group} is not copied to ${to}`,
        `policies.${name}.replicate: [{ from: ${group}, to: ${to} }] in the configuration`,
      ),
    );
  });
}

/** Without a storage there is no policy, which has a check of its own. */
function rulesOf(agent: Agent, { name }: MachineIdentity): readonly ReplicationRule[] {
  return agent.parts.storages.size === 0 ? [] : agent.replications.rulesFor(name);
}

async function checkOne(agent: Agent, machine: MachineIdentity, rule: ReplicationRule): Promise<Check> {
  const { from, to } = rule;
  const what = `copies of ${machine.name}`;
  try {
    const { copies: missing, unread } = await agent.replications.missing(machine, rule);
    const [away] = unread;
    if (missing.length === 0 && away !== undefined)
      return warn(
        what,
        `whether ${to} has what it should get from ${away.storage} cannot be found out: ${away.error.message}`,
        'stillpoint storage list',
      );
    if (missing.length === 0) return ok(what, `${to} has what it should get from ${from}`);
    const oldest = missing[0]?.entry.pointInTime;
    return warn(
      what,
      `${to} has not got ${missing.length} of ${from}, the oldest of ${oldest}${lastFailure(agent, machine, to)}`,
      `stillpoint replicate ${machine.name} --from ${missing[0]?.from.name ?? from} --to ${to}; or wait for the next backup`,
    );
  } catch (error) {
    const { code, message, hint } = errorRecord(error);
    return warn(what, `${from} to ${to}: ${code}: ${message}`, hint ?? 'stillpoint storage list');
  }
}

/** Why, as the journal has it. */
function lastFailure(agent: Agent, machine: MachineIdentity, to: string): string {
  const machineUuid = agent.replications.placeOf(machine, to);
  const error = agent.parts.journal.list({ machine: machineUuid, limit: 1 })[0]?.error;
  return error == null ? '' : `; the last copy ended with ${error.code}: ${error.message}`;
}
