import { access, constants } from 'node:fs/promises';
import { execa } from 'execa';
import type { Agent } from '../../agent/agent.ts';
import { describeChoice } from '../../agent/storageStates.ts';
import { stateOfStorage, statesOfGroups, type StorageState } from '../../agent/storageStates.ts';
import { errorRecord } from '../../common/errors.ts';
import { exists, freeBytes } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { version } from '../../common/version.ts';
import { type LoadedConfig, storageLines } from '../../config/config.ts';
import { quotaHint } from '../../storage/quota.ts';
import { type Check, fail, ok, warn } from './check.ts';
import type { ReadSession } from '../session.ts';
import { checkIdentityOf } from './identity.ts';
import { checkLeftovers } from './leftovers.ts';
import { checkMachines } from './machines.ts';
import { checkProblems } from './problems.ts';
import { checkReplications } from './replications.ts';
import { checkSchedules } from './schedules.ts';

/** Looks at everything that a backup on this host needs; changes nothing. */
export async function checkHost(
  { agent, loaded }: ReadSession,
  configPath: string,
): Promise<readonly Check[]> {
  const groups = [
    [checkPrivileges()],
    [checkConfig(loaded, configPath)],
    checkPushed(loaded),
    await checkLibvirt(agent),
    [await checkQemuImg()],
    [await checkJournal(agent)],
    checkSchedules(agent),
    await checkIdentityOf(agent.parts.config.agent, new Date()),
    await checkStorages(agent, configPath),
    [await checkRamDisk(agent)],
    await checkMachines(agent),
    await checkReplications(agent),
    await checkProblems(agent),
    await checkLeftovers(agent),
  ];
  return groups.flat();
}

function checkPrivileges(): Check {
  return process.geteuid?.() === 0
    ? ok('privileges', `stillpoint ${version} runs as root`)
    : fail(
        'privileges',
        'stillpoint does not run as root: it must give images and states their owners',
        'sudo stillpoint doctor',
      );
}

/** Nothing where nothing was pushed. */
function checkPushed({ config, pushed: { kept, problems } }: LoadedConfig): readonly Check[] {
  if (problems.length > 0)
    return [
      fail(
        'pushed policies',
        problems.join('; '),
        'stillpoint policies; have the controller push its policies again',
      ),
    ];
  if (kept === null || kept.document === null || !config.controller.acceptPolicies) return [];
  return [ok('pushed policies', `revision ${kept.revision}, by ${kept.setBy}, is in force`)];
}

function checkConfig({ files }: LoadedConfig, configPath: string): Check {
  const read =
    files.length === 0
      ? `there is none at ${configPath}; everything has its default`
      : `${files.join(', ')} can be used`;
  return ok('configuration', read);
}

async function checkLibvirt(agent: Agent): Promise<readonly Check[]> {
  try {
    const { hostName, libvirtVersion, qemuVersion, uri } = await agent.parts.hypervisor.hostInfo();
    const found = ok('libvirt', `${uri} on ${hostName}: libvirt ${libvirtVersion}, QEMU ${qemuVersion}`);
    return [found, ...checkQemu(qemuVersion)];
  } catch (error) {
    const { code, message, hint } = errorRecord(error);
    return [
      fail(
        'libvirt',
        `${code}: ${message}`,
        hint ?? `systemctl status libvirtd; virsh -c ${agent.parts.config.agent.libvirtUri} list`,
      ),
    ];
  }
}

/** docs/BEHAVIOUR.md, number 5. */
function checkQemu(qemuVersion: string): readonly Check[] {
  if (!qemuVersion.startsWith('7.2.')) return [];
  return [
    warn(
      'QEMU',
      `QEMU ${qemuVersion} can crash when it is asked about its disks (domblkinfo, domstats --block) while a merge runs`,
      'keep monitoring and management tools from asking for block statistics during backups, or use a newer QEMU',
    ),
  ];
}

async function checkQemuImg(): Promise<Check> {
  const { failed, stdout, shortMessage } = await execa('qemu-img', ['--version'], {
    reject: false,
    timeout: 10_000,
  });
  return failed
    ? fail('qemu-img', `it does not run: ${shortMessage ?? ''}`, 'apt-get install qemu-utils')
    : ok('qemu-img', stdout.split('\n')[0] ?? '');
}

async function checkJournal(agent: Agent): Promise<Check> {
  const { stateDir } = agent.parts.config.agent;
  const hint = `ls -ld ${stateDir}; agent.stateDir in ${agent.parts.configPath}`;
  if (!(await exists(stateDir))) return ok('journal', `${stateDir} is not there yet; the first job makes it`);
  try {
    await access(stateDir, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch (error) {
    return fail('journal', `${stateDir} cannot be written: ${errorRecord(error).message}`, hint);
  }
  return ok(
    'journal',
    `${stateDir}, ${agent.parts.journal.count} jobs, ${formatBytes(await freeBytes(stateDir))} free`,
  );
}

async function checkStorages(agent: Agent, configPath: string): Promise<readonly Check[]> {
  const checks: Check[] = [];
  for (const storage of agent.parts.storages.values()) checks.push(checkOf(await stateOfStorage(storage)));
  for (const { name, choice, problem } of await statesOfGroups(agent)) {
    const title = `storage group ${name}`;
    if (choice === null)
      checks.push(
        fail(
          title,
          problem?.message ?? 'none of its storages can be used',
          problem?.hint ?? 'stillpoint storage list',
        ),
      );
    else if (choice.passedOver.length === 0) checks.push(ok(title, describeChoice(choice)));
    else checks.push(warn(title, describeChoice(choice), 'stillpoint storage list; put those in order'));
  }
  if (checks.length === 0)
    checks.push(
      fail('storages', 'no storage is configured: there is no place for backups', storageLines(configPath)),
    );
  return checks;
}

function checkOf(state: StorageState): Check {
  const { name, location, kind, problem, freeBytes: free, warning } = state;
  const title = `storage ${name}`;
  if (problem !== null)
    return fail(title, `${problem.code}: ${problem.message}`, problem.hint ?? `ls -ld ${location}`);
  if (warning !== null) return warn(title, warning, quotaHint(name, kind));
  return ok(title, `${location}${free === null ? '' : `, ${formatBytes(free)} free`}`);
}

async function checkRamDisk(agent: Agent): Promise<Check> {
  const { ramDisk } = agent.parts.config.agent;
  if (ramDisk === null)
    return ok(
      'RAM disk',
      'none is configured; memory states are saved beside the images, and pauses are longer',
    );
  return ok('RAM disk', `${ramDisk}, ${formatBytes(await freeBytes(ramDisk))} free`);
}
