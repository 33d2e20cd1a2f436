import {
  JobHold,
  JobState,
  type PolicyCopy,
  type WatchJobResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import type { Agent } from '../agent.ts';
import type { StepRow } from '../jobs/job.ts';
import { replicationFactsSchema } from '../replicationJob.ts';
import { jobStateValues } from './enums.ts';
import { ApiError } from './errors.ts';
import { errorDetail } from './grpcErrors.ts';
import { jobMessage, progressMessage, stepMessage } from './jobMessage.ts';
import type { JobSignals } from './jobSignals.ts';
import { requestedJob } from './requestedJob.ts';
import { type CopyOutcome, serviceEnding, type StartedBackups } from './startedBackups.ts';
import { pause } from '../../common/wake.ts';

/** Jobs of other processes write their progress as often. */
const lookIntervalMs = 500;
/** Nobody reads faster. */
const progressIntervalMs = 100;

/**
 * How much of a job a watcher has seen: numbers of changes of steps, of warnings and of copies. The journal has the steps;
 * warnings and copies are those of one run of the service.
 */
interface Seen {
  readonly jobId: string;
  readonly run: string;
  changes: number;
  warnings: number;
  copies: number;
}

export interface JobWatchParts {
  readonly agent: Agent;
  readonly signals: JobSignals;
  readonly started: Pick<StartedBackups, 'isAtWork' | 'copiesOf'>;
}

/**
 * Tells what is new about a job until nobody works on it any more. A job of a dead process goes on being told of: the
 * service takes it over.
 * @throws JobError JOB_NOT_FOUND, JOB_AMBIGUOUS; ApiError REQUEST_INVALID for no id or a cursor that is none, SERVICE_ENDING
 */
export async function* watchJob(
  parts: JobWatchParts,
  request: { readonly id: string; readonly cursor: string; readonly withCopies: boolean },
  signal: AbortSignal,
): AsyncGenerator<WatchJobResponse> {
  const { journal } = parts.agent.parts;
  const { id } = requestedJob(journal, request.id);
  const seen = seenOf(request.cursor, { jobId: id, run: parts.signals.run });
  using watched = parts.signals.watch(id);
  let told = '';
  let toldProgress = '';
  for (;;) {
    // Asked first: what ends in between is at work for one more look.
    const isAtWork = parts.started.isAtWork(id);
    const row = journal.get(id);
    const job = jobMessage(parts.agent, row, parts.signals.progressOf(id));
    for (const step of newSteps(journal.steps(id), seen))
      yield response(seen, { $case: 'step', value: step });
    for (const warning of parts.signals.warningsOf(id).slice(seen.warnings)) {
      seen.warnings += 1;
      yield response(seen, { $case: 'warning', value: warning });
    }
    const { state, hold, cancelRequested, error, replacedByJobId, pausedSince } = job;
    const text = [state, hold, cancelRequested, error?.code, replacedByJobId, pausedSince?.getTime()].join(
      ' ',
    );
    if (text !== told) yield response(seen, { $case: 'job', value: job });
    told = text;
    const isOver = job.hold === JobHold.JOB_HOLD_UNSPECIFIED || job.hold === JobHold.JOB_HOLD_PARKED;
    if (isOver && !isAtWork) break;
    if (signal.aborted) throw serviceEnding();
    const progress = parts.signals.progressOf(id) ?? journal.progress(id);
    const progressText = JSON.stringify(progress) ?? '';
    if (progress !== undefined && progress.state === row.state && progressText !== toldProgress) {
      toldProgress = progressText;
      yield response(seen, { $case: 'progress', value: progressMessage(progress) });
    }
    await pause(progressIntervalMs, signal);
    await watched.wake.sleep(lookIntervalMs, signal);
  }
  if (request.withCopies) yield* watchCopies(parts, id, seen, signal);
}

/** Tells of the copies that follow a backup, until there are no more. */
async function* watchCopies(
  { started, signals }: JobWatchParts,
  jobId: string,
  seen: Seen,
  signal: AbortSignal,
): AsyncGenerator<WatchJobResponse> {
  using watched = signals.watch(jobId);
  for (;;) {
    const copies = started.copiesOf(jobId);
    for (const copy of copies?.outcomes.slice(seen.copies) ?? []) {
      seen.copies += 1;
      yield response(seen, { $case: 'copy', value: copyMessage(copy) });
    }
    if (copies === undefined || (copies.ended && seen.copies >= copies.outcomes.length)) return;
    if (signal.aborted) throw serviceEnding();
    await watched.wake.sleep(lookIntervalMs, signal);
  }
}

/**
 * Changes of steps in their order: the beginning of the nth is number 2n+1, its end 2n+2. An end tells both. One at a
 * time, for the cursor of each to stand behind it and not behind those that were new together with it.
 */
function* newSteps(steps: readonly StepRow[], seen: Seen): Generator<ReturnType<typeof stepMessage>> {
  for (const [index, step] of steps.entries()) {
    const change = 2 * index + (step.status === 'begun' ? 1 : 2);
    if (change <= seen.changes) continue;
    seen.changes = change;
    yield stepMessage(step);
  }
}

function response(seen: Seen, update: WatchJobResponse['update']): WatchJobResponse {
  return { cursor: `j.${seen.jobId}.${seen.changes}.${seen.warnings}.${seen.copies}.${seen.run}`, update };
}

/** @param of the job, and the run of the service: of what another one has warned of and copied, it knows nothing */
function seenOf(cursor: string, of: Pick<Seen, 'jobId' | 'run'>): Seen {
  if (cursor === '') return { ...of, changes: 0, warnings: 0, copies: 0 };
  const [, jobId, changes, warnings, copies, run] =
    /^j\.([0-9a-f-]{36})\.(\d{1,9})\.(\d{1,9})\.(\d{1,9})\.([0-9a-f-]{36})$/.exec(cursor) ?? [];
  if (jobId !== of.jobId)
    throw new ApiError('REQUEST_INVALID', 'the cursor is none of this job', {
      hint: 'give back the cursor of the last response as it came, or none',
    });
  const isOfRun = run === of.run;
  return {
    ...of,
    changes: Number(changes),
    warnings: isOfRun ? Number(warnings) : 0,
    copies: isOfRun ? Number(copies) : 0,
  };
}

function copyMessage({ from, to, job, error }: CopyOutcome): PolicyCopy {
  const facts = job === null ? undefined : replicationFactsSchema.safeParse(job.record).data;
  return {
    fromStorage: from,
    toStorage: to,
    jobId: job?.id ?? '',
    state: job === null ? JobState.JOB_STATE_UNSPECIFIED : jobStateValues[job.state],
    backupIds: [...(facts?.copied ?? [])],
    error: error === null ? undefined : errorDetail(error, to),
  };
}
