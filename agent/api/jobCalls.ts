import {
  type CancelJobRequest,
  type CancelJobResponse,
  type GetJobRequest,
  type GetJobResponse,
  Job,
  JobHold,
  type ListJobsRequest,
  type ListJobsResponse,
  type RetryJobRequest,
  type RetryJobResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { backupOfJob } from '../backupCopies.ts';
import type { JobListing, JobRow } from '../jobs/job.ts';
import type { Journal } from '../jobs/journal.ts';
import { backupMessage } from './backupMessage.ts';
import { scopeOf } from './caller.ts';
import type { ApiCall, ApiContext } from './context.ts';
import { holdOf, jobMessage, stepMessage } from './jobMessage.ts';
import { Pages } from './page.ts';
import { requestedJob } from './requestedJob.ts';
import { refusedKey, serviceEnding } from './startedBackups.ts';
import { fingerprintOf, requireKey } from './startRequest.ts';

const jobsDefault = 100;

/** @throws ApiError REQUEST_INVALID */
export function listJobs({ agent }: ApiContext, request: ListJobsRequest): ListJobsResponse {
  const { journal } = agent.parts;
  const pages = new Pages<JobRow>(request, {
    of: ['jobs', request.machine, request.unfinishedOnly],
    keyOf: ({ id }) => id,
    defaultSize: jobsDefault,
  });
  const machine = request.machine === '' ? undefined : request.machine;
  const { after: before, size } = pages;
  // One more than a page: whether there is another. The journal may remember more than there is memory for.
  const rows = request.unfinishedOnly
    ? unfinished(journal, { machine, before })
    : journal.list({ machine, before, limit: size + 1 });
  const page = pages.from(rows);
  const told = page.items.map((job) => jobMessage(agent, job));
  const { messages, nextPageToken } = pages.fitting(page, told, Job);
  return { jobs: messages, nextPageToken };
}

/** The newest first. */
function unfinished(
  journal: Pick<Journal, 'holding'>,
  { machine, before }: Pick<JobListing, 'machine' | 'before'>,
): readonly JobRow[] {
  return journal
    .holding()
    .filter(({ id }) => before === undefined || id < before)
    .filter(({ machineName, machineUuid }) => [undefined, machineName, machineUuid].includes(machine))
    .toSorted((a, b) => (a.id < b.id ? 1 : -1));
}

/** @throws ApiError REQUEST_INVALID; JobError JOB_NOT_FOUND, JOB_AMBIGUOUS; StorageError when what it has made cannot be looked at */
export async function getJob({ agent }: ApiContext, { id }: GetJobRequest): Promise<GetJobResponse> {
  const { journal } = agent.parts;
  const job = requestedJob(journal, id);
  const isMade = job.kind === 'backup' && job.state === 'finished';
  const backup = isMade ? await backupOfJob(agent, job) : null;
  return {
    job: jobMessage(agent, job),
    steps: journal.steps(job.id).map(stepMessage),
    backup: backup === null ? undefined : backupMessage(backup, { withManifest: true }),
  };
}

/** @throws ApiError REQUEST_INVALID; JobError JOB_NOT_FOUND, JOB_AMBIGUOUS, JOB_STATE_INVALID */
export async function cancelJob(
  context: ApiContext,
  { id }: CancelJobRequest,
  { caller }: ApiCall,
): Promise<CancelJobResponse> {
  const { agent, background, log, started } = context;
  const { journal } = agent.parts;
  const job = requestedJob(journal, id);
  log.info({ ...aboutOf(job), caller: caller.name, pid: caller.pid }, 'cancel asked for');
  const work = agent.cancel(job.id);
  // One that nobody worked on is brought to its end by this very call, which can take hours.
  if (holdOf(job) === JobHold.JOB_HOLD_UNSPECIFIED) await work;
  else background.run(work, aboutOf(job));
  started.letGo(job.id);
  return { job: jobMessage(agent, journal.get(job.id)) };
}

/** @throws JobError JOB_NOT_FOUND, JOB_AMBIGUOUS, JOB_STATE_INVALID; ApiError */
export async function retryJob(
  context: ApiContext,
  { id, idempotencyKey }: RetryJobRequest,
  { caller }: ApiCall,
): Promise<RetryJobResponse> {
  const { agent, background, ending, log } = context;
  const { journal } = agent.parts;
  const request = { scope: scopeOf(caller), key: requireKey(idempotencyKey) };
  const job = requestedJob(journal, id);
  const answer = journal.requests.open(request, fingerprintOf('retry', job.id));
  if (answer.kind === 'other' || answer.kind === 'full') throw refusedKey(answer.kind);
  if (answer.kind === 'new' || answer.outcomes.length === 0) {
    if (ending.aborted) throw serviceEnding();
    const hold = holdOf(job);
    const isLeft = hold === JobHold.JOB_HOLD_PARKED || hold === JobHold.JOB_HOLD_ORPHANED;
    // Of any other one this says why there is nothing to go on with.
    if (!isLeft) await agent.retry(job.id);
    journal.requests.assign({ ...request, part: job.id }, job.id);
    log.info({ ...aboutOf(job), caller: caller.name, pid: caller.pid }, 'retry asked for');
    background.run(agent.retry(job.id), aboutOf(job));
  }
  return { job: jobMessage(agent, journal.get(job.id)) };
}

function aboutOf({ id, machineName }: JobRow): { readonly jobId: string; readonly machine: string } {
  return { jobId: id, machine: machineName };
}
