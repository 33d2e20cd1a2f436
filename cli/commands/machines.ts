import type { Agent } from '../../agent/agent.ts';
import type { MachineSummary } from '../../agent/hypervisor/hypervisor.ts';
import { serviceStatus } from '../../agent/observe/jobStatuses.ts';
import { type ScheduleReport, ScheduleReports } from '../../agent/service/report.ts';
import { type ErrorRecord, errorRecord } from '../../common/errors.ts';
import { policyFor } from '../../config/policy.ts';
import type { KnownBackups } from '../../agent/observe/machineStatuses.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { type LastBackup, lastBackupOf, lookAtBackups } from '../lastBackups.ts';
import { styled, type Text } from '../output.ts';
import { lastRunText, nextText, scheduleJson } from '../schedules.ts';
import { reading } from '../session.ts';

/** What a backup of a machine would be, or why there can be none. */
interface MachineReport {
  readonly machine: MachineSummary;
  /** Name of the policy; `null` for an excluded machine, or when there is no storage. */
  readonly policy: string | null;
  readonly mode: string | null;
  readonly refusal: ErrorRecord | null;
  readonly lastBackup: LastBackup | null;
  /** null: it is backed up by command only. */
  readonly schedule: ScheduleReport | null;
}

/** `stillpoint machines`. */
export const machines: RunVerb = (cli) =>
  reading(cli, async ({ agent }) => {
    const found = await agent.parts.hypervisor.machines();
    const backups = await lookAtBackups(cli, agent);
    const reports: MachineReport[] = [];
    for (const machine of found.toSorted((a, b) => a.name.localeCompare(b.name))) {
      reports.push(await report(agent, machine, backups));
    }
    if (cli.terminal.json) cli.terminal.object({ machines: reports.map(reportJson) });
    else if (reports.length === 0) cli.terminal.remark('libvirt knows no machines');
    else printReports(cli, reports);
    if (reports.some(({ schedule }) => schedule !== null) && !serviceStatus(agent.parts.journal).running)
      cli.terminal.warning('the service does not run, so nobody acts on the schedules: stillpoint status');
    return 0;
  });

async function report(agent: Agent, machine: MachineSummary, backups: KnownBackups): Promise<MachineReport> {
  const lastBackup = lastBackupOf(agent, machine.uuid, backups);
  const schedule = scheduleOf(
    agent,
    machine,
    lastBackup === null ? null : Date.parse(lastBackup.pointInTime),
  );
  const about = { machine, lastBackup, schedule, policy: null, mode: null, refusal: null };
  const unfinished = unfinishedJob(agent, machine);
  if (unfinished !== undefined) return { ...about, refusal: unfinished };
  try {
    const decision = policyFor(agent.parts.config, machine.name, agent.parts.configPath);
    if (decision.kind === 'policy') return await withPlan(agent, { ...about, policy: decision.policy.name });
    const message = `excluded by the rule "${decision.match}"`;
    return {
      ...about,
      refusal: {
        code: 'MACHINE_EXCLUDED',
        message,
        hint: 'stillpoint policies',
        retryable: false,
      },
    };
  } catch (error) {
    return { ...about, refusal: errorRecord(error) };
  }
}

/** Without a storage there is no policy, which the refusal tells. */
function scheduleOf(
  agent: Agent,
  machine: MachineSummary,
  lastSuccessMs: number | null,
): ScheduleReport | null {
  if (agent.parts.storages.size === 0) return null;
  return new ScheduleReports(agent).of(machine, Date.now(), lastSuccessMs);
}

/** A machine that a job has in its hands: what it looks like says nothing, and is not to be acted upon. */
function unfinishedJob(agent: Agent, machine: MachineSummary): ErrorRecord | undefined {
  const { journal } = agent.parts;
  const job = journal.holder(machine.uuid);
  if (job === undefined) return undefined;
  const what = `${job.kind} job ${job.id} (${job.state})`;
  if (job.owner === null)
    return {
      code: 'UNFINISHED_JOB',
      message: `${what} was left with work to do`,
      hint: `stillpoint job show ${job.id}`,
      retryable: false,
    };
  if (journal.orphaned().some(({ id }) => id === job.id))
    return {
      code: 'UNFINISHED_JOB',
      message: `the process of ${what} died: leave the machine as it is`,
      hint: 'stillpoint agent --once',
      retryable: false,
    };
  return {
    code: 'MACHINE_BUSY',
    message: `${what} works on it`,
    hint: `stillpoint job watch ${job.id}`,
    retryable: true,
  };
}

async function withPlan(agent: Agent, about: MachineReport): Promise<MachineReport> {
  try {
    const { plan } = await agent.planBackup({ machine: about.machine.uuid });
    return { ...about, mode: plan.mode };
  } catch (error) {
    return { ...about, refusal: errorRecord(error) };
  }
}

function reportJson({ machine, policy, mode, refusal, lastBackup, schedule }: MachineReport): unknown {
  const { name, uuid, status, persistent, autostart } = machine;
  return {
    name,
    uuid,
    state: status.state,
    reason: status.reason,
    persistent,
    autostart,
    policy,
    mode,
    refusal,
    lastBackup,
    schedule: schedule === null ? null : scheduleJson(schedule),
  };
}

function printReports(cli: Cli, reports: readonly MachineReport[]): void {
  const titles = ['MACHINE', 'STATE', 'MODE', 'POLICY', 'LAST BACKUP', 'NEXT BACKUP', 'REMARKS'];
  const rows = reports.map(({ machine, policy, mode, refusal, lastBackup, schedule }): readonly Text[] => [
    machine.name,
    machine.status.state,
    mode === null ? '-' : styled('green', mode),
    policy ?? '-',
    lastBackup?.pointInTime ?? 'never',
    schedule === null ? '-' : nextText(schedule, Date.now()),
    styled('yellow', remarksOn(refusal, schedule)),
  ]);
  cli.terminal.table(
    titles.map((title) => ({ title })),
    rows,
  );
  for (const { machine, refusal } of reports) {
    if (refusal?.hint !== undefined)
      cli.terminal.remark(styled('bold', 'hint: '), `${machine.name}: ${refusal.hint}`);
  }
}

function remarksOn(refusal: ErrorRecord | null, schedule: ScheduleReport | null): string {
  const remarks = [
    refusal === null ? null : `${refusal.code}: ${refusal.message}`,
    schedule === null ? null : lastRunText(schedule),
  ];
  return remarks.filter((remark) => remark !== null).join('; ');
}
