import { StillpointError } from '../common/errors.ts';

/** Closed set of what a receiver of reports cannot do. */
export type ReceiverErrorCode =
  /** The reports that it has cannot be read, or no more can be written. */
  | 'REPORT_STORE_UNUSABLE'
  /** The address is taken, is none of this host, or leads further than this host without certificates. */
  | 'CANNOT_LISTEN';

/** An error of a receiver of reports. */
export class ReceiverError extends StillpointError<ReceiverErrorCode> {
  constructor(
    code: ReceiverErrorCode,
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
