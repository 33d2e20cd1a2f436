import { nothingPushed } from '../../config/config.ts';
import type { ScheduleReport } from '../service/report.ts';
import type { StorageState } from '../storageStates.ts';
import type { HostStatus, JobStatus, MachineStatus } from './hostStatus.ts';
import type { BackupDigest } from './jobDigests.ts';
import type { StorageLook, StoredMachine } from './storageLook.ts';

/*
 * A host on which all is well, for tests that change one thing: machine `web-1`, backed up an hour ago into storage
 * `local`, each day.
 */

export const nowMs = Date.UTC(2026, 10, 22, 3);
export const hourMs = 3_600_000;
export const webUuid = '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01';
const jobId = '01a1ff90-0e37-7a51-9d0b-1c6f4c1a7a01';

export function digest(change: Partial<BackupDigest> = {}): BackupDigest {
  return {
    jobId,
    machineUuid: webUuid,
    state: 'finished',
    error: null,
    createdAtMs: nowMs - hourMs,
    endedAtMs: nowMs - hourMs + 90_000,
    storages: ['local'],
    pointInTimeMs: nowMs - hourMs,
    pauseMs: 250,
    steps: [
      { name: 'preflight', durationMs: 500 },
      { name: 'retain', durationMs: 60_000 },
    ],
    workDirectories: [],
    ...change,
  };
}

export function schedule(change: Partial<ScheduleReport> = {}): ScheduleReport {
  return { nextMs: nowMs + 23 * hourMs, run: null, lastWord: null, dueSinceMs: null, ...change };
}

export function machine(change: Partial<MachineStatus> = {}): MachineStatus {
  return {
    uuid: webUuid,
    name: 'web-1',
    state: 'running',
    excluded: false,
    lastBackups: [{ storage: 'local', atMs: nowMs - hourMs, referencedBytes: 4096 }],
    lastRun: digest(),
    lastSuccess: digest(),
    schedule: schedule(),
    ...change,
  };
}

export function stored(change: Partial<StoredMachine> = {}): StoredMachine {
  return {
    uuid: webUuid,
    name: 'web-1',
    backups: 3,
    newest: { backupId: jobId, atMs: nowMs - hourMs, referencedBytes: 4096 },
    verifiedAtMs: nowMs - 24 * hourMs,
    failedVerification: null,
    ...change,
  };
}

export function storage(
  change: Partial<Omit<StorageLook, 'state'>> & { readonly state?: Partial<StorageState> } = {},
): StorageLook {
  const state: StorageState = {
    name: 'local',
    location: '/backups',
    kind: 'directory',
    ok: true,
    problem: null,
    capacityBytes: 1000,
    freeBytes: 600,
    storedBytes: null,
    quotaBytes: null,
    warning: null,
    ...change.state,
  };
  return {
    name: 'local',
    atMs: nowMs,
    warnPercent: 85,
    unusableSinceMs: null,
    listedAtMs: nowMs,
    machines: new Map([[webUuid, stored()]]),
    backups: 3,
    damagedBackups: 0,
    problem: null,
    ...change,
    state,
  };
}

export function job(change: Partial<JobStatus> = {}): JobStatus {
  return {
    id: jobId,
    kind: 'backup',
    machine: { uuid: webUuid, name: 'web-1' },
    state: 'retaining',
    hold: 'running',
    createdAtMs: nowMs - 60_000,
    progress: null,
    error: null,
    hint: null,
    ...change,
  };
}

export function host(change: Partial<HostStatus> = {}): HostStatus {
  return {
    atMs: nowMs,
    service: { running: true, pid: 4711, sinceMs: nowMs - 48 * hourMs, version: '0.1.0' },
    hypervisor: { unreachableSinceMs: null, problem: null },
    pushed: nothingPushed,
    jobs: [],
    machines: [machine()],
    scheduledPolicies: ['default'],
    failedCopies: [],
    storages: [storage()],
    unseenStorages: [],
    ...change,
  };
}
