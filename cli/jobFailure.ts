import type { JobRow } from '../agent/jobs/job.ts';
import { StillpointError } from '../common/errors.ts';

/** The error with which a job ended, as the journal has it. */
export class JobFailure extends StillpointError {
  constructor(job: Pick<JobRow, 'id' | 'state' | 'holdsMachine' | 'error'>) {
    const { code, message, hint, retryable } = job.error ?? {
      code: job.state === 'cancelled' ? 'CANCELLED' : 'INTERNAL_ERROR',
      message:
        job.state === 'cancelled'
          ? 'the job was cancelled'
          : `the job ended as ${job.state} without an error`,
      retryable: false,
    };
    const left = `stillpoint job retry ${job.id}, or stillpoint job cancel ${job.id}`;
    super(message, {
      code,
      hint: job.holdsMachine ? [hint, left].filter((part) => part !== undefined).join('; then ') : hint,
      retryable,
    });
  }
}
