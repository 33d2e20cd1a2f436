import type { AlertEvent } from '../../config/observability.ts';
import { formatDuration } from '../../common/time.ts';
import type { FailedCopy, HostStatus, JobStatus, MachineStatus } from './hostStatus.ts';
import { whoHasSchedule } from './scheduledPolicies.ts';
import type { StorageLook } from './storageLook.ts';

/**
 * What no alert is sent about. `last-backup-failed`: it is tried again, or nobody has asked for more than one attempt.
 * `service-stopped`: nobody is there to send it. `never-backed-up`: nobody may want it otherwise.
 */
export type UnsentEvent = 'last-backup-failed' | 'service-stopped' | 'never-backed-up';

/** Something that is wrong on a host and that somebody should look at. */
export interface Problem {
  /** The same as long as it lasts, and of no other one. */
  readonly key: string;
  readonly event: AlertEvent | UnsentEvent;
  readonly severity: 'warning' | 'critical';
  readonly machine: { readonly uuid: string; readonly name: string } | null;
  readonly storage: string | null;
  readonly jobId: string | null;
  readonly message: string;
  /** What to type. */
  readonly hint: string;
}

export interface ProblemBounds {
  /** A machine is overdue when its backup has been due for so long. */
  readonly overdueMs: number;
  /** libvirt and storages count as away when they have been for so long: a restart is no problem. */
  readonly settleMs: number;
}

/** What is wrong on a host; the worst first. */
export function problemsOf(status: HostStatus, bounds: ProblemBounds): readonly Problem[] {
  const problems = [
    ...ofService(status),
    ...ofHypervisor(status, bounds),
    ...ofPushed(status),
    ...status.jobs.flatMap(ofJob),
    ...status.machines.flatMap((machine) => ofMachine(machine, status, bounds)),
    ...status.failedCopies.map(ofCopy),
    ...ofNeverBackedUp(status),
    ...status.storages.flatMap((storage) => ofStorage(storage, status, bounds)),
  ];
  const rank = ({ severity }: Problem): number => (severity === 'critical' ? 0 : 1);
  return problems.toSorted((one, other) => rank(one) - rank(other));
}

const nothing = { machine: null, storage: null, jobId: null } as const;

/** Without a schedule there is nothing that only the service does. */
function ofService({ service, scheduledPolicies }: HostStatus): readonly Problem[] {
  if (service.running || scheduledPolicies.length === 0) return [];
  return [
    {
      ...nothing,
      key: 'service-stopped',
      event: 'service-stopped',
      severity: 'critical',
      message: `${whoHasSchedule(scheduledPolicies)} a schedule, and the service does not run: nothing is backed up by it`,
      hint: 'systemctl status stillpoint-agent; systemctl start stillpoint-agent; journalctl -u stillpoint-agent',
    },
  ];
}

/** The copy after the next backup brings what is missing, but until then there is one place less. */
function ofCopy({ machine, from, to, jobId, error }: FailedCopy): Problem {
  return {
    ...nothing,
    key: `copy-failed:${machine.uuid}:${to}`,
    event: 'copy-failed',
    severity: 'critical',
    machine,
    storage: to,
    jobId,
    message: `the last copy of ${machine.name} from ${from} to ${to} failed: ${error?.message ?? 'nobody knows why'}`,
    hint: `stillpoint job show ${jobId}; stillpoint replicate ${machine.name} --from ${from} --to ${to}`,
  };
}

/** So many are told by name. */
const namedMax = 5;

/** Those of a schedule that come too late are told as overdue. A storage that is silent may have what seems missing. */
function ofNeverBackedUp({ machines, storages, unseenStorages }: HostStatus): readonly Problem[] {
  const names = machines
    .filter(({ excluded, lastBackups }) => !excluded && lastBackups.length === 0)
    .map(({ name }) => name);
  const isKnown = unseenStorages.length === 0 && storages.every(({ listedAtMs }) => listedAtMs !== null);
  if (names.length === 0 || !isKnown) return [];
  const more = names.length > namedMax ? ` and ${names.length - namedMax} more` : '';
  return [
    {
      ...nothing,
      key: 'never-backed-up',
      event: 'never-backed-up',
      severity: 'warning',
      message: `there is no backup of ${names.slice(0, namedMax).join(', ')}${more}`,
      hint: 'stillpoint machines; stillpoint backup MACHINE, or a schedule in its policy',
    },
  ];
}

function ofHypervisor({ hypervisor, atMs }: HostStatus, { settleMs }: ProblemBounds): readonly Problem[] {
  const { unreachableSinceMs, problem } = hypervisor;
  if (unreachableSinceMs === null || atMs - unreachableSinceMs < settleMs) return [];
  return [
    {
      ...nothing,
      key: 'libvirt-unreachable',
      event: 'libvirt-unreachable',
      severity: 'critical',
      message: `libvirt does not answer: ${problem?.message ?? 'it gives no reason'}`,
      hint: problem?.hint ?? 'systemctl status libvirtd virtqemud',
    },
  ];
}

/** Machines whose pushed policy cannot be used have one of the host, and are not pruned. */
function ofPushed({ pushed: { kept, problems } }: HostStatus): readonly Problem[] {
  if (problems.length === 0) return [];
  const which = kept === null ? '' : ` (revision ${kept.revision}, by ${kept.setBy})`;
  return [
    {
      ...nothing,
      key: 'policies-unusable',
      event: 'policies-unusable',
      severity: 'critical',
      message: `what was pushed to this host${which} cannot be used as it is: ${problems.join('; ')}`,
      hint: 'stillpoint policies; have the controller push its policies again',
    },
  ];
}

/** A job of a dead process is taken over soon, and is told of if it is parked then. */
function ofJob({ id, kind, machine, hold, error, hint }: JobStatus): readonly Problem[] {
  if (hold !== 'parked') return [];
  return [
    {
      ...nothing,
      key: `job-parked:${id}`,
      event: 'job-parked',
      severity: 'critical',
      machine,
      jobId: id,
      message: `${kind} of ${machine.name} was left with work to do: ${error?.message ?? 'nobody has said why'}`,
      hint: hint ?? `stillpoint job show ${id}`,
    },
  ];
}

function ofMachine(
  machine: MachineStatus,
  { atMs, jobs }: HostStatus,
  { overdueMs }: ProblemBounds,
): readonly Problem[] {
  const { uuid, name, excluded, lastRun, schedule } = machine;
  if (excluded) return [];
  const about = { ...nothing, machine: { uuid, name }, severity: 'critical' as const };
  const problems: Problem[] = [];
  const dueSinceMs = schedule?.dueSinceMs ?? null;
  if (dueSinceMs !== null && atMs - dueSinceMs >= overdueMs)
    problems.push({
      ...about,
      key: `machine-overdue:${uuid}`,
      event: 'machine-overdue',
      message: `the backup of ${name} has been due for ${formatDuration(atMs - dueSinceMs)}`,
      hint: `stillpoint jobs --machine ${name}; systemctl status stillpoint-agent.service`,
    });
  const word = schedule?.lastWord ?? null;
  // One that somebody has made by hand since is as good.
  const isServed = word !== null && (machine.lastSuccess?.endedAtMs ?? 0) > word.atMs;
  const failure = word?.kind === 'gave-up' && !isServed ? word : null;
  if (failure !== null)
    problems.push({
      ...about,
      key: `backup-failed:${uuid}`,
      event: 'backup-failed',
      jobId: failure.jobId,
      message: `the scheduled backup of ${name} failed, and is not tried again: ${failure.error?.message ?? 'nobody knows why'}`,
      hint: failure.error?.hint ?? `stillpoint jobs --machine ${name}`,
    });
  const isParked = jobs.some(({ id, hold }) => hold === 'parked' && id === lastRun?.jobId);
  if (failure === null && lastRun?.state === 'failed' && !isParked)
    problems.push({
      ...about,
      key: `last-backup-failed:${uuid}`,
      event: 'last-backup-failed',
      jobId: lastRun.jobId,
      message: `the last backup of ${name} failed: ${lastRun.error?.message ?? 'nobody knows why'}`,
      hint: `stillpoint job show ${lastRun.jobId}`,
    });
  return problems;
}

function ofStorage(look: StorageLook, { atMs }: HostStatus, { settleMs }: ProblemBounds): readonly Problem[] {
  const { name: storage, state, problem, unusableSinceMs } = look;
  const about = { ...nothing, storage };
  const problems: Problem[] = [];
  if (unusableSinceMs !== null && atMs - unusableSinceMs >= settleMs)
    problems.push({
      ...about,
      key: `storage-unusable:${storage}`,
      event: 'storage-unusable',
      severity: 'critical',
      message: `storage ${storage} cannot be used: ${problem?.message ?? 'it gives no reason'}`,
      hint: problem?.hint ?? 'stillpoint storage list',
    });
  if (state.warning !== null)
    problems.push({
      ...about,
      key: `storage-full:${storage}`,
      event: 'storage-full',
      severity: isFull(look) ? 'critical' : 'warning',
      message: state.warning,
      hint: `stillpoint storage show ${storage}; stillpoint prune --storage ${storage} --dry-run`,
    });
  for (const { uuid, name, failedVerification } of look.machines.values()) {
    if (failedVerification === null) continue;
    const { backupId } = failedVerification;
    problems.push({
      ...about,
      key: `verification-failed:${storage}:${uuid}`,
      event: 'verification-failed',
      severity: 'critical',
      machine: { uuid, name },
      message: `backup ${backupId} of ${name} in storage ${storage} is not what was stored, or did not start`,
      hint: `stillpoint show ${backupId}; stillpoint verify ${backupId} --data`,
    });
  }
  return problems;
}

/** Nothing goes in any more. */
function isFull({ state: { freeBytes, storedBytes, quotaBytes } }: StorageLook): boolean {
  return freeBytes === 0 || (quotaBytes !== null && storedBytes !== null && storedBytes >= quotaBytes);
}
