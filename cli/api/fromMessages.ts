import { jobKindValues, jobStateValues, machineStateValues, wordOf } from '../../agent/api/enums.ts';
import { recordOfDetail } from '../../agent/api/grpcErrors.ts';
import type { BackupCopy, StoredBackup } from '../../agent/backupCopies.ts';
import type { JobProgress, JobPause, JobRow } from '../../agent/jobs/job.ts';
import type { MachineSummary } from '../../agent/hypervisor/hypervisor.ts';
import type { StorageChoice } from '../../agent/storageStates.ts';
import {
  type Backup,
  type BackupCopy as CopyMessage,
  BackupState,
  type BackupVerification,
  type Job,
  JobHold,
  type JobProgress as ProgressMessage,
  type Machine,
  type StorageChoice as ChoiceMessage,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { manifestShape } from '../../storage/manifest.ts';
import { type Verification, verificationShape } from '../../storage/verification.ts';
import { pauseJson } from '../jobView.ts';
import { required } from './agentClient.ts';

/** A job as a command tells of it. */
export type ToldJob = Pick<
  JobRow,
  'id' | 'kind' | 'machineName' | 'machineUuid' | 'state' | 'holdsMachine' | 'error'
> & { readonly pause: JobPause | null };

/** A job of the service. @throws CliError SERVICE_INCOMPATIBLE for words that this program does not know */
export function jobOf(message: Job): ToldJob {
  const { id, kind, machine, state, hold, error } = message;
  return {
    id,
    kind: required(wordOf(jobKindValues, kind)),
    machineName: machine?.name ?? '',
    machineUuid: machine?.uuid ?? '',
    state: required(wordOf(jobStateValues, state)),
    holdsMachine: hold !== JobHold.JOB_HOLD_UNSPECIFIED,
    error: error === undefined ? null : recordOfDetail(error),
    pause: pauseOf(message),
  };
}

function pauseOf({ pauseRequestedAt, pausedSince, pauseUntil }: Job): JobPause | null {
  if (pauseRequestedAt === undefined) return null;
  return {
    requestedAtMs: pauseRequestedAt.getTime(),
    sinceMs: pausedSince?.getTime() ?? null,
    untilMs: required(pauseUntil).getTime(),
  };
}

const holds = {
  [JobHold.JOB_HOLD_RUNNING]: 'running',
  [JobHold.JOB_HOLD_ORPHANED]: 'orphaned',
  [JobHold.JOB_HOLD_PARKED]: 'parked',
} as const;

/** A job as `--json` prints it. @throws CliError SERVICE_INCOMPATIBLE */
export function jobJsonOf(message: Job): Readonly<Record<string, unknown>> {
  const { hold, cancelRequested, createdAt, updatedAt, finishedAt, progress } = message;
  const job = jobOf(message);
  const known: Readonly<Record<number, string>> = holds;
  return {
    id: job.id,
    kind: job.kind,
    machine: { name: job.machineName, uuid: job.machineUuid },
    state: job.state,
    hold: known[hold] ?? null,
    cancelRequested,
    pause: pauseJson(job.pause),
    error: job.error,
    createdAt: createdAt?.toISOString(),
    updatedAt: updatedAt?.toISOString(),
    finishedAt: finishedAt?.toISOString() ?? null,
    progress: progress === undefined ? null : progressOf(job, progress),
  };
}

/** Progress of a job of the service. */
export function progressOf(job: ToldJob, progress: ProgressMessage): JobProgress {
  const { step, detail, doneBytes, totalBytes, bytesPerSecond, etaSeconds } = progress;
  return {
    jobId: job.id,
    state: job.state,
    step,
    detail: detail === '' ? undefined : detail,
    doneBytes: asNumber(doneBytes),
    totalBytes: asNumber(totalBytes),
    bytesPerSecond: asNumber(bytesPerSecond),
    etaSeconds: asNumber(etaSeconds),
  };
}

function asNumber(value: bigint | undefined): number | undefined {
  return value === undefined ? undefined : Number(value);
}

/** As much of a machine as a choice among machines needs. */
export function machineOf(message: Machine): MachineSummary {
  const { machine, state, stateReason, persistent, autostart } = message;
  return {
    uuid: machine?.uuid ?? '',
    name: machine?.name ?? '',
    status: { state: wordOf(machineStateValues, state) ?? 'no-state', reason: stateReason },
    persistent,
    autostart,
    hasManagedSave: false,
  };
}

/** Which storage of a group was chosen. */
export function choiceOf({ group, storage, passedOver }: ChoiceMessage): StorageChoice {
  return {
    group,
    storage,
    passedOver: passedOver.map(({ about, code, message }) => ({ storage: about, code, message })),
  };
}

/** A backup that the service has told of with its manifest. @throws CliError SERVICE_INCOMPATIBLE */
export function backupOf(message: Backup): StoredBackup {
  const { id, machine, pointInTime, problem, localOnly, copies, manifestJson } = message;
  const manifest = required(manifestShape.safeParse(JSON.parse(manifestJson)).data);
  const storages = copies.map(copyOf);
  const state = stateOf(message.state);
  const common = {
    id,
    machine: { name: machine?.name ?? '', uuid: machine?.uuid ?? null },
    pointInTime: manifest.pointInTime ?? pointInTime?.toISOString() ?? '',
    manifest,
  };
  const entries = storages.map((copy) => ({
    ...common,
    storage: copy.name,
    directory: copy.directory,
    state: copy.state,
    problem: copy.problem,
    protected: copy.protected,
    protectedReason: copy.protectedReason,
    verified: copy.verified,
  }));
  const entry = required(entries.find((one) => one.state === 'Active') ?? entries[0]);
  return {
    entry: { ...entry, problem: problem === '' ? null : problem },
    entries,
    state,
    storages,
    localOnly,
  };
}

function stateOf(state: BackupState): StoredBackup['state'] {
  return state === BackupState.BACKUP_STATE_ACTIVE ? 'Active' : 'Killed';
}

function copyOf(copy: CopyMessage): BackupCopy {
  return {
    name: copy.storage,
    directory: copy.location,
    local: copy.local,
    state: stateOf(copy.state),
    problem: copy.problem === '' ? null : copy.problem,
    protected: copy.protected,
    protectedReason: copy.protectedReason === '' ? null : copy.protectedReason,
    lockedUntil: copy.lockedUntil?.toISOString() ?? null,
    verified: copy.verification === undefined ? null : verificationOf(copy.verification),
  };
}

function verificationOf(message: BackupVerification): Verification {
  const { verifiedAt, evidence, picture, ...others } = message;
  const fields = {
    ...others,
    at: verifiedAt?.toISOString(),
    evidence: evidence === '' ? null : evidence,
    picture: picture === '' ? null : picture,
  };
  return required(verificationShape.safeParse(fields).data);
}
