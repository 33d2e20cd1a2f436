import type { Agent } from '../../agent/agent.ts';
import type { MachineSummary } from '../../agent/hypervisor/hypervisor.ts';
import { errorRecord } from '../../common/errors.ts';
import { formatBytes } from '../../common/units.ts';
import { freeBytes } from '../../common/files.ts';
import { policyFor } from '../../config/policy.ts';
import { gatherBackups } from '../backups.ts';
import { type Check, fail, ok, warn } from './check.ts';

/** What each running machine would meet in a backup, and whether its backups would outlive its file system. */
export async function checkMachines(agent: Agent): Promise<readonly Check[]> {
  const { hypervisor, config } = agent.parts;
  let machines: readonly MachineSummary[];
  let names: readonly string[];
  try {
    machines = await hypervisor.machines();
    names = machines.filter(({ status }) => status.state !== 'shut-off').map(({ name }) => name);
  } catch (error) {
    return [fail('machines', `they cannot be listed: ${errorRecord(error).message}`, 'see libvirt above')];
  }
  const checks: Check[] = [];
  for (const name of names.toSorted()) checks.push(...(await checkMachine(agent, name)));
  const ramBytes = config.agent.ramDisk === null ? null : await freeBytes(config.agent.ramDisk);
  if (names.length === 0)
    checks.push(
      ok(
        'machines',
        `none runs${ramBytes === null ? '' : `; memory states up to ${formatBytes(ramBytes)} fit the RAM disk`}`,
      ),
    );
  return [...checks, ...checkOff(agent, machines), ...(await checkCopies(agent))];
}

/** Machines that `backup --all` leaves out, and whether a schedule has them. */
export function checkOff(
  { parts: { config, configPath, storages } }: Pick<Agent, 'parts'>,
  machines: readonly MachineSummary[],
): readonly Check[] {
  // Without a storage there is no policy, which has a check of its own.
  if (storages.size === 0) return [];
  const off = machines
    .filter(({ status }) => status.state === 'shut-off')
    .map(({ name }) => ({ name, decision: policyFor(config, name, configPath) }))
    .filter(({ decision }) => decision.kind === 'policy' && decision.policy.schedule === null)
    .map(({ name }) => name)
    .toSorted();
  if (off.length === 0) return [];
  const message = `${off.join(', ')}: off and in no schedule; backup --all leaves out what is off, a name or a pattern takes it`;
  return [ok('machines that are off', message)];
}

async function checkMachine(agent: Agent, name: string): Promise<readonly Check[]> {
  try {
    const { plan, storages, warnings } = await agent.planBackup({ machine: name });
    const possible = ok(
      `machine ${name}`,
      `can be backed up in mode ${plan.mode} into ${storages.join(', ')}`,
    );
    return warnings.length === 0
      ? [possible]
      : [possible, ...warnings.map((warning) => warn(`machine ${name}`, warning, hintFor(warning)))];
  } catch (error) {
    const { code, message, hint } = errorRecord(error);
    if (code === 'MACHINE_EXCLUDED') return [ok(`machine ${name}`, message)];
    return [warn(`machine ${name}`, `${code}: ${message}`, hint ?? 'stillpoint machines')];
  }
}

function hintFor(warning: string): string {
  return warning.startsWith('local-only')
    ? 'add a storage on another disk to the policy of the machine'
    : 'nothing needs to be done if this is as you want it';
}

/** Damaged backups, and those that go with the file system of their machine. */
async function checkCopies(agent: Agent): Promise<readonly Check[]> {
  const entries = [];
  for (const storage of agent.parts.storages.values()) {
    // A storage that does not answer has a check of its own.
    if ((await storage.check()).ok) entries.push(...(await storage.list()));
  }
  const backups = await gatherBackups(agent, entries);
  const damaged = entries.filter(({ state }) => state !== 'Active');
  const local = backups.filter(({ localOnly }) => localOnly).length;
  const checks: Check[] = damaged.map(({ directory, problem }) =>
    fail(
      'backup',
      `${directory} is damaged: ${problem ?? 'no reason is known'}`,
      'stillpoint verify --all --data; make a new backup of the machine',
    ),
  );
  if (local > 0)
    checks.push(
      warn(
        'backups',
        `${local} of ${backups.length} are local-only: they go with the file system of their machine`,
        'add a storage on another disk',
      ),
    );
  if (checks.length === 0)
    checks.push(ok('backups', `${backups.length}, none damaged (contents: stillpoint verify --all --data)`));
  return checks;
}
