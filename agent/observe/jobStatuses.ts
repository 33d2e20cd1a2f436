import { type JobRow, machineOf } from '../jobs/job.ts';
import type { Journal } from '../jobs/journal.ts';
import { isOwnerAlive, ownerStartedMs } from '../jobs/owner.ts';
import type { JobHold, JobStatus, ServiceStatus } from './hostStatus.ts';

/** The jobs of a host that are not at their end, oldest first. */
export function jobStatuses(journal: Journal): readonly JobStatus[] {
  return journal.holding().map((row) => statusOf(journal, row));
}

/** Whether the service of a host runs. */
export function serviceStatus(journal: Journal): ServiceStatus {
  const owner = journal.serviceOwner();
  if (owner === undefined || !isOwnerAlive(owner))
    return { running: false, pid: null, sinceMs: null, version: null };
  const { pid } = owner;
  return { running: true, pid, sinceMs: ownerStartedMs(owner), version: journal.serviceVersion() ?? null };
}

function statusOf(journal: Journal, row: JobRow): JobStatus {
  const { id, kind, state, error, createdAtMs } = row;
  const isAlive = row.owner !== null && isOwnerAlive(row.owner);
  const progress = isAlive ? (journal.progress(id) ?? null) : null;
  const hold = row.owner === null ? 'parked' : isAlive ? runningHold(progress?.step) : 'orphaned';
  const machine = machineOf(row);
  return { id, kind, machine, state, hold, createdAtMs, progress, error, hint: hintOf(id, hold) };
}

function runningHold(step: string | undefined): JobHold {
  return step === 'waits' ? 'waiting' : 'running';
}

function hintOf(id: string, hold: JobHold): string | null {
  if (hold === 'orphaned') return 'stillpoint agent --once';
  if (hold === 'parked')
    return `stillpoint job show ${id}; then stillpoint job retry ${id}, or stillpoint job cancel ${id}`;
  return null;
}
