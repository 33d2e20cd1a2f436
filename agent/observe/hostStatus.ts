import type { ErrorRecord } from '../../common/errors.ts';
import type { PushedStatus } from '../../config/config.ts';
import type { MachineState } from '../hypervisor/hypervisor.ts';
import type { JobKind, JobProgress, JobState } from '../jobs/job.ts';
import type { ScheduleReport } from '../service/report.ts';
import type { BackupDigest } from './jobDigests.ts';
import type { StorageLook } from './storageLook.ts';

/** The service of this host. */
export interface ServiceStatus {
  readonly running: boolean;
  /** null where it does not run, here and below. */
  readonly pid: number | null;
  readonly sinceMs: number | null;
  /** null also for one that is too old to say so. */
  readonly version: string | null;
}

/** Whether libvirt answers. */
export interface HypervisorStatus {
  /** null: it does. */
  readonly unreachableSinceMs: number | null;
  readonly problem: ErrorRecord | null;
}

/**
 * What a job that is not at its end is doing. `waiting`: for its turn on a storage. `orphaned`: its process died, and
 * it is taken over soon, or by the next command. `parked`: it was left with work that needs somebody.
 */
export type JobHold = 'running' | 'waiting' | 'orphaned' | 'parked';

/** A job that is not at its end. */
export interface JobStatus {
  readonly id: string;
  readonly kind: JobKind;
  readonly machine: { readonly uuid: string; readonly name: string };
  readonly state: JobState;
  readonly hold: JobHold;
  readonly createdAtMs: number;
  /** Of a job that runs, as its process has told it last. */
  readonly progress: JobProgress | null;
  readonly error: ErrorRecord | null;
  /** What to type about it; null: nothing. */
  readonly hint: string | null;
}

/** The newest good backup of a machine in a storage. */
export interface LastBackup {
  readonly storage: string;
  /** T1. */
  readonly atMs: number;
  /** null: the storage has not been looked at since. */
  readonly referencedBytes: number | null;
}

/** How a machine stands to its backups. */
export interface MachineStatus {
  readonly uuid: string;
  readonly name: string;
  /** null: libvirt does not answer. */
  readonly state: MachineState | null;
  /** The operator does not want it backed up. */
  readonly excluded: boolean;
  /** Newest good ones first, one for each storage that has any. */
  readonly lastBackups: readonly LastBackup[];
  /** The newest backup job that has ended, however it did; null: the journal knows none. */
  readonly lastRun: BackupDigest | null;
  /** The newest one that succeeded. */
  readonly lastSuccess: BackupDigest | null;
  /** null: it is backed up by command only. */
  readonly schedule: ScheduleReport | null;
}

/** A copy that a policy asks for, whose newest job has failed, and that nobody has made since. */
export interface FailedCopy {
  readonly machine: { readonly uuid: string; readonly name: string };
  readonly from: string;
  readonly to: string;
  readonly jobId: string;
  readonly error: ErrorRecord | null;
}

/** What there is to tell of a host, at one moment. */
export interface HostStatus {
  readonly atMs: number;
  readonly service: ServiceStatus;
  readonly hypervisor: HypervisorStatus;
  /** What a controller has pushed. */
  readonly pushed: PushedStatus;
  /** Oldest first. */
  readonly jobs: readonly JobStatus[];
  /** By name. */
  readonly machines: readonly MachineStatus[];
  /** Names of the policies that have a schedule. */
  readonly scheduledPolicies: readonly string[];
  readonly failedCopies: readonly FailedCopy[];
  /** Those that have been looked at. */
  readonly storages: readonly StorageLook[];
  /** Names of configured ones that have kept the look waiting, and have never been seen before. */
  readonly unseenStorages: readonly string[];
}
