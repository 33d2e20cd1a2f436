import { StillpointError } from '../../common/errors.ts';

/** Closed set of what the engine and the journal refuse or report. */
export type JobErrorCode =
  /** Another job works on the machine. */
  | 'MACHINE_BUSY'
  /** A job of an agent that died, or a failed one that left work, must be ended first. */
  | 'UNFINISHED_JOB'
  | 'JOB_NOT_FOUND'
  | 'JOB_AMBIGUOUS'
  /** The job has ended, or is not in a state in which this can be asked of it. */
  | 'JOB_STATE_INVALID'
  | 'CANCELLED'
  /** A step took longer than its deadline. */
  | 'STEP_DEADLINE_EXCEEDED'
  /** The agent that owned the job died in the middle; recovery put everything in order. */
  | 'AGENT_DIED'
  /** The service that ran the job was stopped, and gave it up in order. */
  | 'AGENT_STOPPED'
  /** Written by another version, or damaged. */
  | 'JOB_RECORD_UNREADABLE'
  /** The journal cannot be opened or is of a newer version. */
  | 'JOURNAL_UNUSABLE';

/** An error of the job engine. */
export class JobError extends StillpointError<JobErrorCode> {
  constructor(
    code: JobErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
