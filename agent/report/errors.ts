import { StillpointError } from '../../common/errors.ts';

/** Closed set of what can go wrong with reports to a controller. None of it ends or delays a job. */
export type ReportErrorCode =
  /** The outbox cannot be opened, read or written: no room, no right to, or it is of a newer version. */
  | 'OUTBOX_UNUSABLE'
  /** The file of the outbox is damaged: the next one who opens it sets it aside and begins anew. */
  | 'OUTBOX_DAMAGED'
  /** The connection could not be made, or broke. */
  | 'CONTROLLER_UNREACHABLE'
  /** The controller does not want this host's reports, or answers what no controller should. */
  | 'CONTROLLER_REFUSED';

/** An error of the outbox or of its delivery. */
export class ReportError extends StillpointError<ReportErrorCode> {
  constructor(
    code: ReportErrorCode,
    message: string,
    options: {
      readonly hint?: string | undefined;
      readonly cause?: unknown;
      readonly retryable?: boolean | undefined;
    } = {},
  ) {
    super(message, { code, ...options });
  }
}
