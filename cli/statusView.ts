import type { HostStatus, JobStatus, MachineStatus } from '../agent/observe/hostStatus.ts';
import type { Problem } from '../agent/observe/problems.ts';
import type { StorageLook } from '../agent/observe/storageLook.ts';
import { formatDuration } from '../common/time.ts';
import { formatBytes } from '../common/units.ts';
import { shortId } from './backups.ts';
import { timeOf } from './jobView.ts';
import { type Column, styled, type StyledText, tableLines, type Text } from './output.ts';
import { describeProgress } from './progress.ts';
import { lastRunText, nextText, scheduleJson } from './schedules.ts';

type Line = readonly Text[];

/** A host for people. */
export function statusLines(status: HostStatus): readonly Line[] {
  const { jobs, machines, storages } = status;
  return [
    serviceLine(status),
    ...noScheduleLines(status),
    ...section('ID,KIND,MACHINE,STATE,BEGUN,NOW', jobs.map(jobRow)),
    ...section(
      'MACHINE,STATE,LAST BACKUP,IN,NEXT BACKUP,REMARKS',
      machines.map((machine) => machineRow(machine, status)),
    ),
    ...section('STORAGE,BACKUPS,FREE,CAPACITY,STORED,QUOTA,STATE', storages.map(storageRow)),
  ];
}

/** What is wrong, and what to type. */
export function problemLines(problems: readonly Problem[]): readonly Line[] {
  return problems.flatMap(({ severity, message, hint }): readonly Line[] => [
    [styled(severity === 'critical' ? 'red' : 'yellow', `${severity}: `), message],
    [styled('bold', 'hint: '), hint],
  ]);
}

/** What changes of a host that somebody follows, by what it is about. */
export function statusFacts(status: HostStatus, problems: readonly Problem[]): ReadonlyMap<string, string> {
  const facts = new Map<string, string>();
  facts.set('service', `the service ${status.service.running ? 'runs' : 'does not run'}`);
  for (const { id, kind, machine, state, hold, progress } of status.jobs) {
    const step = progress === null ? '' : `, ${progress.step}`;
    facts.set(`job ${id}`, `job ${shortId(id)} (${kind} of ${machine.name}): ${state}, ${hold}${step}`);
  }
  for (const { name, lastBackups } of status.machines) {
    const last = lastBackups[0];
    if (last !== undefined) facts.set(`machine ${name}`, `${name}: last backup of ${timeOf(last.atMs)}`);
  }
  for (const { key, severity, message } of problems) facts.set(`problem ${key}`, `${severity}: ${message}`);
  return facts;
}

function serviceLine({ service, hypervisor, atMs }: HostStatus): Line {
  const { pid, sinceMs, version } = service;
  const since = sinceMs === null ? '' : ` for ${formatDuration(atMs - sinceMs)}`;
  const running = `runs${since} (process ${pid}, version ${version ?? 'unknown'})`;
  const { unreachableSinceMs, problem } = hypervisor;
  return [
    styled('bold', 'service '),
    service.running ? running : styled('yellow', 'does not run'),
    '; libvirt ',
    unreachableSinceMs === null ? 'answers' : styled('red', `does not answer: ${problem?.message ?? ''}`),
  ];
}

/** Told and no problem: somebody may start his backups by other means. */
function noScheduleLines({ scheduledPolicies }: HostStatus): readonly Line[] {
  if (scheduledPolicies.length > 0) return [];
  return [[styled('yellow', 'no policy has a schedule'), ': machines are backed up by command only']];
}

/** A table with an empty line before it; nothing where it has no rows. */
function section(titles: string, rows: readonly (readonly Text[])[]): readonly Line[] {
  if (rows.length === 0) return [];
  const columns = titles.split(',').map((title): Column => ({ title }));
  return [[], ...tableLines(columns, rows)];
}

function jobRow({
  id,
  kind,
  machine,
  state,
  hold,
  createdAtMs,
  progress,
  error,
}: JobStatus): readonly Text[] {
  const now = progress === null ? (error?.message ?? '') : describeProgress(progress);
  return [shortId(id), kind, machine.name, holdText(state, hold), timeOf(createdAtMs), now];
}

function holdText(state: string, hold: JobStatus['hold']): StyledText {
  const isOurs = hold === 'running' || hold === 'waiting';
  return styled(isOurs ? 'bold' : 'yellow', `${state} (${hold})`);
}

function machineRow(
  { name, state, excluded, lastBackups, lastRun, schedule }: MachineStatus,
  { atMs }: HostStatus,
): readonly Text[] {
  const last = lastBackups[0];
  const age = last === undefined ? 'never' : `${formatDuration(Math.max(0, atMs - last.atMs))} ago`;
  const failure = lastRun?.state === 'failed' ? `the last one failed: ${lastRun.error?.code ?? ''}` : '';
  const remark = (schedule === null ? null : lastRunText(schedule)) ?? failure;
  return [
    name,
    state ?? 'unknown',
    last === undefined && !excluded ? styled('yellow', age) : age,
    storagesOfNewest(lastBackups).join(' ') || '-',
    schedule === null ? '-' : nextText(schedule, atMs),
    styled('yellow', excluded ? 'excluded by the configuration' : remark),
  ];
}

/** Those that have the backup which is shown, not those that have an older one. */
function storagesOfNewest(lastBackups: MachineStatus['lastBackups']): readonly string[] {
  return lastBackups.filter(({ atMs }) => atMs === lastBackups[0]?.atMs).map(({ storage }) => storage);
}

function storageRow({ name, backups, state, unusableSinceMs }: StorageLook): readonly Text[] {
  const size = (bytes: number | null): string => (bytes === null ? '-' : formatBytes(bytes));
  const { freeBytes, capacityBytes, storedBytes, quotaBytes, warning, problem } = state;
  const usable = warning === null ? styled('green', 'usable') : styled('yellow', 'nearly full');
  return [
    name,
    backups === null ? '-' : String(backups),
    size(freeBytes),
    size(capacityBytes),
    size(storedBytes),
    size(quotaBytes),
    unusableSinceMs === null ? usable : styled('red', problem?.code ?? 'unusable'),
  ];
}

/** A host as `--json` prints it. */
export function statusJson(
  status: HostStatus,
  problems: readonly Problem[],
): Readonly<Record<string, unknown>> {
  const { atMs, service, hypervisor, jobs, machines, storages } = status;
  const { unreachableSinceMs, problem } = hypervisor;
  const { sinceMs, ...aboutService } = service;
  return {
    at: timeOf(atMs),
    service: { ...aboutService, since: timeOrNull(sinceMs) },
    libvirt: { ok: unreachableSinceMs === null, problem },
    jobs: jobs.map(({ createdAtMs, ...job }) => ({ ...job, createdAt: timeOf(createdAtMs) })),
    machines: machines.map(machineJson),
    storages: storages.map(storageJson),
    problems,
  };
}

function machineJson({
  lastBackups,
  lastRun,
  lastSuccess,
  schedule,
  ...machine
}: MachineStatus): Readonly<Record<string, unknown>> {
  const { jobId, state, endedAtMs, error } = lastRun ?? {};
  return {
    ...machine,
    lastBackups: lastBackups.map(({ storage, atMs, referencedBytes }) => ({
      storage,
      pointInTime: timeOf(atMs),
      referencedBytes,
    })),
    lastRun: lastRun === null ? null : { jobId, state, endedAt: timeOrNull(endedAtMs ?? null), error },
    lastPauseMs: lastSuccess?.pauseMs ?? null,
    schedule: schedule === null ? null : scheduleJson(schedule),
  };
}

function storageJson(look: StorageLook): Readonly<Record<string, unknown>> {
  const { name, atMs, listedAtMs, unusableSinceMs, state, backups, damagedBackups, problem } = look;
  const { freeBytes, capacityBytes, storedBytes, quotaBytes, warning } = state;
  return {
    name,
    ok: unusableSinceMs === null,
    lookedAt: timeOf(atMs),
    listedAt: timeOrNull(listedAtMs),
    freeBytes,
    capacityBytes,
    storedBytes,
    quotaBytes,
    backups,
    damagedBackups,
    warning,
    problem,
  };
}

function timeOrNull(ms: number | null): string | null {
  return ms === null ? null : timeOf(ms);
}
