import * as z from 'zod';
import type { JobReport } from '../../proto/generated/stillpoint/v1/report.ts';
import type { JobRow, StepRow } from '../jobs/job.ts';
import type { Journal } from '../jobs/journal.ts';
import { alertTelling, reportedError } from './alerts.ts';
import type { OutboxKeeper } from './outboxKeeper.ts';
import { dateOf, type NewReport } from './report.ts';

const cursorName = 'jobs';
const cursorSchema = z.object({ journal: z.string(), change: z.number() });
/** So many jobs in one transaction. */
const jobsAtOnce = 100;
/** Of a job that was retried again and again. */
const stepsMax = 500;

/** What the records of jobs of all kinds may say, as far as a report has it. */
const factsSchema = z.object({
  backupId: z.string().optional().catch(undefined),
  pointInTime: z.string().optional().catch(undefined),
  pauseMs: z.number().nullable().optional().catch(undefined),
  plan: z
    .object({ backup: z.object({ id: z.string() }) })
    .optional()
    .catch(undefined),
});

/** What was read of the journal. */
export interface FedJobs {
  /** Jobs among it that have ended. */
  readonly ended: readonly JobRow[];
  /** There is more, to be read at once. */
  readonly more: boolean;
}

/**
 * Notes what has become of jobs since the last call, whichever process has done them: the journal tells it, and how far
 * it was read is noted in the same transaction. A full outbox leaves jobs in the journal until there is room.
 * @throws ReportError; JobError JOURNAL_UNUSABLE
 */
export function feedJobs(journal: Pick<Journal, 'changedJobs' | 'steps'>, keeper: OutboxKeeper): FedJobs {
  const { outbox } = keeper;
  if (!outbox.hasRoom) return { ended: [], more: false };
  const after = cursorSchema.safeParse(outbox.cursor(cursorName)).data;
  const { jobs, cursor, more } = journal.changedJobs(after, jobsAtOnce);
  if (jobs.length === 0) return { ended: [], more: false };
  const raised = outbox.told('alert');
  const alerts = jobs.flatMap((job) => alertTelling(raised, `job/${job.id}/parked`, parkedError(job)) ?? []);
  keeper.note({
    reports: [
      ...jobs.map((job) => jobReport(job, journal.steps(job.id))),
      ...alerts.map(({ report }) => report),
    ],
    told: alerts.map(({ told }) => told),
    cursor: { name: cursorName, value: cursor },
  });
  return { ended: jobs.filter(({ finishedAtMs }) => finishedAtMs !== null), more };
}

/** A job as it is. */
export function jobReport(job: JobRow, steps: readonly StepRow[]): NewReport {
  const ended = job.finishedAtMs !== null;
  return {
    subject: job.id,
    weight: ended ? 'lasting' : 'progress',
    body: { $case: 'job', value: { ...jobValue(job), steps: steps.slice(-stepsMax).map(stepValue) } },
  };
}

function jobValue(job: JobRow): Omit<JobReport, 'steps'> {
  const { data: facts = {} } = factsSchema.safeParse(job.record);
  const ended = job.finishedAtMs !== null;
  return {
    id: job.id,
    kind: job.kind,
    machineUuid: job.machineUuid,
    machineName: job.machineName,
    state: job.state,
    ended,
    needsOperator: ended && job.holdsMachine,
    createdTime: dateOf(job.createdAtMs),
    endedTime: dateOf(job.finishedAtMs),
    error: job.error === null ? undefined : reportedError(job.error),
    backupId: facts.backupId ?? facts.plan?.backup.id ?? '',
    pointInTime: facts.pointInTime ?? '',
    pauseMs: facts.pauseMs ?? undefined,
  };
}

function stepValue({ name, status, startedAtMs, durationMs }: StepRow): JobReport['steps'][number] {
  return { name, status, startedTime: dateOf(startedAtMs), durationMs: durationMs ?? undefined };
}

/** What an operator must know of a job that has ended and keeps its machine; null: it does not. */
function parkedError({ id, finishedAtMs, holdsMachine, machineName, error }: JobRow) {
  if (finishedAtMs === null || !holdsMachine) return null;
  return {
    code: 'UNFINISHED_JOB',
    message: `job ${id} of ${machineName} was left with work to do: ${error?.message ?? 'it does not say why'}`,
    hint: `stillpoint job show ${id}`,
    retryable: false,
  };
}
