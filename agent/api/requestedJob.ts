import type { JobRow } from '../jobs/job.ts';
import type { Journal } from '../jobs/journal.ts';
import { ApiError } from './errors.ts';

/** The job that a request names. @throws ApiError REQUEST_INVALID; JobError JOB_NOT_FOUND, JOB_AMBIGUOUS */
export function requestedJob(journal: Pick<Journal, 'get'>, id: string): JobRow {
  if (id === '') throw new ApiError('REQUEST_INVALID', 'id is missing');
  return journal.get(id);
}
