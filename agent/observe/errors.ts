import { StillpointError } from '../../common/errors.ts';

/** Closed set of what keeps the service from being watched. None of it keeps it from its work. */
export type ObserveErrorCode =
  /** The address of the metrics is taken, or not one of this host. */
  | 'METRICS_UNAVAILABLE'
  /** A webhook did not take an alert. */
  | 'ALERT_NOT_DELIVERED'
  /** The file with the secret or the certificates of a webhook cannot be used. */
  | 'ALERT_FILE_UNUSABLE';

/** An error of what lets others watch a host. */
export class ObserveError extends StillpointError<ObserveErrorCode> {
  constructor(
    code: ObserveErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
