import { StillpointError } from '../../common/errors.ts';
import { JobError } from './errors.ts';

/** The process is to end. */
export function stopped(cause?: unknown): JobError {
  return new JobError('AGENT_STOPPED', 'the service was stopped while it worked on this job', {
    cause,
    retryable: true,
    hint: 'a schedule begins it again by itself; otherwise start it again',
  });
}

/** Somebody has asked for it. */
export function cancelled(cause?: unknown): JobError {
  return new JobError('CANCELLED', 'the job was cancelled', { cause });
}

/** A step took longer than its policy allows. */
export function deadlineExceeded(
  step: { readonly name: string; readonly deadlineMs?: number | undefined },
  cause: unknown,
): JobError {
  const seconds = Math.round((step.deadlineMs ?? 0) / 1000);
  return new JobError('STEP_DEADLINE_EXCEEDED', `the step "${step.name}" took longer than its ${seconds} s`, {
    cause,
    retryable: true,
    hint: 'raise the deadline in the policy, or find out what is slow, then: stillpoint job retry <id>',
  });
}

/** Anything thrown, as an error with a code: what is not ours is a fault of the program or of the system. */
export function asStillpointError(error: unknown): StillpointError {
  if (error instanceof StillpointError) return error;
  return new UnexpectedError(error);
}

/** A failure that no module foresaw; its text and code are the system's. */
class UnexpectedError extends StillpointError<'INTERNAL_ERROR'> {
  constructor(cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), {
      code: 'INTERNAL_ERROR',
      cause,
      hint: 'this is a fault in Stillpoint or an unforeseen answer of the system; the log has the details',
    });
  }
}
