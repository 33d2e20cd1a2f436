import { isErrno, messageOf, StillpointError } from '../common/errors.ts';

/** Closed set of what the command line itself refuses. */
export type CliErrorCode =
  /** The command was not typed as it must be. */
  | 'USAGE'
  /** It means something that this version cannot do. */
  | 'NOT_AVAILABLE'
  /** The operator did not say yes, or nobody was there to be asked. */
  | 'NOT_CONFIRMED'
  /** A signal asked the command to end before it had begun. */
  | 'INTERRUPTED'
  /** What the command had to tell could not be written. */
  | 'OUTPUT_FAILED'
  /** There is a service of this host, but it does not answer, or this user may not speak with it. */
  | 'SERVICE_UNREACHABLE'
  /** The service is of a version that does not know what this command needs. */
  | 'SERVICE_INCOMPATIBLE'
  /** The operating system does not let this user do what the command needs. */
  | 'ACCESS_DENIED'
  /** The service went away while it was doing what it had been asked for. */
  | 'SERVICE_LOST';

/** An error of a command as it was typed. */
export class CliError extends StillpointError<CliErrorCode> {
  constructor(code: CliErrorCode, message: string, hint?: string) {
    super(message, { code, hint });
  }
}

/** The error that is told. What a signal to us has cut short, where that is no job, rejects with the signal's abort. */
export function asTold(error: unknown): unknown {
  if (isErrno(error, 'EACCES') || isErrno(error, 'EPERM'))
    return new CliError(
      'ACCESS_DENIED',
      messageOf(error),
      'run it as root; a member of agent.socketGroup may speak with the service',
    );
  if (!(error instanceof Error) || error.name !== 'AbortError') return error;
  return new CliError(
    'INTERRUPTED',
    'the command was interrupted: what it had begun goes on with the same command',
  );
}
