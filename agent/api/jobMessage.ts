import type { Agent } from '../agent.ts';
import type { JobProgress as Progress, JobRow, StepRow } from '../jobs/job.ts';
import type { Journal } from '../jobs/journal.ts';
import { isOwnerAlive } from '../jobs/owner.ts';
import {
  type Job,
  JobHold,
  type JobProgress,
  type JobStep,
  type StorageChoice,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import type { StorageChoice as Choice } from '../storageStates.ts';
import { jobKindValues, jobStateValues, stepStateValues } from './enums.ts';
import { errorDetail } from './grpcErrors.ts';

/** As much of an agent as its jobs need to be told of. */
export interface JobTeller {
  readonly parts: { readonly journal: Pick<Journal, 'progress' | 'replacementOf'> };
  readonly backupFacts: Agent['backupFacts'];
}

/** A job of the journal as a message. */
export function jobMessage(agent: JobTeller, job: JobRow, progress?: Progress): Job {
  const { journal } = agent.parts;
  const hold = holdOf(job);
  const isRunning = hold === JobHold.JOB_HOLD_RUNNING;
  const present = isRunning ? (progress ?? journal.progress(job.id)) : undefined;
  return {
    id: job.id,
    kind: jobKindValues[job.kind],
    machine: { uuid: job.machineUuid, name: job.machineName },
    state: jobStateValues[job.state],
    hold,
    cancelRequested: job.cancelRequested,
    error: job.error === null ? undefined : errorDetail(job.error, job.machineName),
    createdAt: new Date(job.createdAtMs),
    updatedAt: new Date(job.updatedAtMs),
    finishedAt: job.finishedAtMs === null ? undefined : new Date(job.finishedAtMs),
    progress: present === undefined ? undefined : progressMessage(present),
    ...backupFields(agent, job),
    pausedSince: job.pause?.sinceMs == null ? undefined : new Date(job.pause.sinceMs),
    pauseRequestedAt: job.pause === null ? undefined : new Date(job.pause.requestedAtMs),
    pauseUntil: job.pause === null ? undefined : new Date(job.pause.untilMs),
    replacedByJobId: journal.replacementOf(job.id) ?? '',
  };
}

/** Why a job keeps its machine. */
export function holdOf({ holdsMachine, owner }: Pick<JobRow, 'holdsMachine' | 'owner'>): JobHold {
  if (!holdsMachine) return JobHold.JOB_HOLD_UNSPECIFIED;
  if (owner === null) return JobHold.JOB_HOLD_PARKED;
  return isOwnerAlive(owner) ? JobHold.JOB_HOLD_RUNNING : JobHold.JOB_HOLD_ORPHANED;
}

function backupFields(
  agent: JobTeller,
  job: JobRow,
): Pick<Job, 'backupId' | 'storages' | 'storageChoices' | 'warnings'> {
  const facts = agent.backupFacts(job);
  return {
    backupId: facts?.backupId ?? '',
    storages: [...(facts?.settings.storages ?? [])],
    storageChoices: (facts?.settings.storageChoices ?? []).map(choiceMessage),
    warnings: [...(facts?.warnings ?? [])],
  };
}

function choiceMessage({ group, storage, passedOver }: Choice): StorageChoice {
  return {
    group,
    storage,
    passedOver: passedOver.map(({ storage: about, code, message }) =>
      errorDetail({ code, message, retryable: false }, about),
    ),
  };
}

/** Progress as a message. */
export function progressMessage(progress: Progress): JobProgress {
  return {
    step: progress.step,
    detail: progress.detail ?? '',
    doneBytes: wholeNumber(progress.doneBytes),
    totalBytes: wholeNumber(progress.totalBytes),
    bytesPerSecond: wholeNumber(progress.bytesPerSecond),
    etaSeconds: wholeNumber(progress.etaSeconds),
  };
}

function wholeNumber(value: number | undefined): bigint | undefined {
  return value === undefined || !Number.isFinite(value) ? undefined : BigInt(Math.round(value));
}

/** A step of a job as a message. */
export function stepMessage({ name, status, startedAtMs, durationMs }: StepRow): JobStep {
  return {
    name,
    state: stepStateValues[status],
    startedAt: new Date(startedAtMs),
    durationMs: durationMs ?? undefined,
  };
}
