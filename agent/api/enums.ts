import type { BackupRequest } from '../backupRequests.ts';
import type { HypervisorEvent, MachineState as HostMachineState } from '../hypervisor/hypervisor.ts';
import type { JobKind as Kind, JobState as State, StepRow } from '../jobs/job.ts';
import {
  BackupMode,
  Consistency,
  HostView,
  JobKind,
  JobState,
  MachineEventKind,
  MachineState,
  RestoreStart,
  StepState,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import type { Manifest } from '../../storage/manifest.ts';
import { ApiError } from './errors.ts';
import type { RestorePlan } from './restoreWish.ts';

/** Our words for the values of the API, for each enumeration. */

export const jobStateValues: Readonly<Record<State, JobState>> = {
  initialized: JobState.JOB_STATE_INITIALIZED,
  snapshotting: JobState.JOB_STATE_SNAPSHOTTING,
  snapshotted: JobState.JOB_STATE_SNAPSHOTTED,
  merging: JobState.JOB_STATE_MERGING,
  merged: JobState.JOB_STATE_MERGED,
  retaining: JobState.JOB_STATE_RETAINING,
  retained: JobState.JOB_STATE_RETAINED,
  finished: JobState.JOB_STATE_FINISHED,
  planned: JobState.JOB_STATE_PLANNED,
  confirmed: JobState.JOB_STATE_CONFIRMED,
  restoring: JobState.JOB_STATE_RESTORING,
  restored: JobState.JOB_STATE_RESTORED,
  failed: JobState.JOB_STATE_FAILED,
  cancelled: JobState.JOB_STATE_CANCELLED,
};

export const jobKindValues: Readonly<Record<Kind, JobKind>> = {
  backup: JobKind.JOB_KIND_BACKUP,
  restore: JobKind.JOB_KIND_RESTORE,
  verify: JobKind.JOB_KIND_VERIFY,
  replicate: JobKind.JOB_KIND_REPLICATE,
};

export const stepStateValues: Readonly<Record<StepRow['status'], StepState>> = {
  begun: StepState.STEP_STATE_BEGUN,
  done: StepState.STEP_STATE_DONE,
  failed: StepState.STEP_STATE_FAILED,
};

export const restoreStartValues: Readonly<Record<RestorePlan['start'], RestoreStart>> = {
  resume: RestoreStart.RESTORE_START_RESUME,
  boot: RestoreStart.RESTORE_START_BOOT,
  none: RestoreStart.RESTORE_START_NONE,
};

export const backupModeValues: Readonly<Record<NonNullable<BackupRequest['mode']>, BackupMode>> = {
  auto: BackupMode.BACKUP_MODE_AUTO,
  live: BackupMode.BACKUP_MODE_LIVE,
  save: BackupMode.BACKUP_MODE_SAVE,
  disk: BackupMode.BACKUP_MODE_DISK,
  offline: BackupMode.BACKUP_MODE_OFFLINE,
};

export const consistencyValues: Readonly<Record<Manifest['consistency'], Consistency>> = {
  memory: Consistency.CONSISTENCY_MEMORY,
  filesystem: Consistency.CONSISTENCY_FILESYSTEM,
  crash: Consistency.CONSISTENCY_CRASH,
  offline: Consistency.CONSISTENCY_OFFLINE,
};

export const machineStateValues: Readonly<Record<HostMachineState, MachineState>> = {
  running: MachineState.MACHINE_STATE_RUNNING,
  blocked: MachineState.MACHINE_STATE_BLOCKED,
  paused: MachineState.MACHINE_STATE_PAUSED,
  'shutting-down': MachineState.MACHINE_STATE_SHUTTING_DOWN,
  'shut-off': MachineState.MACHINE_STATE_SHUT_OFF,
  crashed: MachineState.MACHINE_STATE_CRASHED,
  pmsuspended: MachineState.MACHINE_STATE_PMSUSPENDED,
  'no-state': MachineState.MACHINE_STATE_UNSPECIFIED,
};

type Lifecycle = Extract<HypervisorEvent, { kind: 'lifecycle' }>['event'];

export const machineEventValues: Readonly<Record<Lifecycle, MachineEventKind>> = {
  defined: MachineEventKind.MACHINE_EVENT_KIND_DEFINED,
  undefined: MachineEventKind.MACHINE_EVENT_KIND_UNDEFINED,
  started: MachineEventKind.MACHINE_EVENT_KIND_STARTED,
  suspended: MachineEventKind.MACHINE_EVENT_KIND_SUSPENDED,
  resumed: MachineEventKind.MACHINE_EVENT_KIND_RESUMED,
  stopped: MachineEventKind.MACHINE_EVENT_KIND_STOPPED,
  shutdown: MachineEventKind.MACHINE_EVENT_KIND_SHUTDOWN,
  pmsuspended: MachineEventKind.MACHINE_EVENT_KIND_PMSUSPENDED,
  crashed: MachineEventKind.MACHINE_EVENT_KIND_CRASHED,
};

/** Our word for a value; `undefined` for one that has none. */
export function wordOf<Word extends string, Value extends number>(
  values: Readonly<Record<Word, Value>>,
  value: number,
): Word | undefined {
  const words: readonly string[] = Object.keys(values);
  return words.find((word): word is Word => isWord(values, word) && values[word] === value);
}

function isWord<Word extends string>(values: Readonly<Record<Word, number>>, word: string): word is Word {
  return Object.hasOwn(values, word);
}

/** The mode that a request asks for; `undefined`: that of the policy. @throws ApiError REQUEST_INVALID */
export function modeOf(value: BackupMode): BackupRequest['mode'] {
  if (value === BackupMode.BACKUP_MODE_UNSPECIFIED) return undefined;
  const mode = wordOf(backupModeValues, value);
  if (mode !== undefined) return mode;
  throw noSuchValue(`backup mode ${value}`);
}

/** @throws ApiError REQUEST_INVALID */
export function restoreStartOf(value: RestoreStart): RestorePlan['start'] | undefined {
  if (value === RestoreStart.RESTORE_START_UNSPECIFIED) return undefined;
  const start = wordOf(restoreStartValues, value);
  if (start !== undefined) return start;
  throw noSuchValue(`start ${value} of a restore`);
}

/** Whether a view of the host has what libvirt knows in it. @throws ApiError REQUEST_INVALID */
export function wantsHypervisor(value: HostView): boolean {
  if (value === HostView.HOST_VIEW_FULL) return true;
  if (value === HostView.HOST_VIEW_BASIC || value === HostView.HOST_VIEW_UNSPECIFIED) return false;
  throw noSuchValue(`view ${value} of a host`);
}

function noSuchValue(what: string): ApiError {
  return new ApiError('REQUEST_INVALID', `there is no ${what} in this version`, {
    hint: 'the service may be older than its client: look at Host.api_level',
  });
}
