import { StillpointError } from '../../common/errors.ts';

/** Closed set of what the API itself refuses or reports. */
export type ApiErrorCode =
  /** A field of a request is missing, or has a value that it cannot have. */
  | 'REQUEST_INVALID'
  /** A call asks for more time than there is for one. */
  | 'DEADLINE_TOO_LONG'
  /** The same key came with another request. */
  | 'IDEMPOTENCY_KEY_REUSED'
  /** More requests of a day than are remembered. */
  | 'TOO_MANY_REQUESTS'
  /** A later revision of pushed policies is in force. */
  | 'POLICIES_OUTDATED'
  /** The same revision came with other policies. */
  | 'POLICIES_REVISION_REUSED'
  /** Pushed policies could not be written down. */
  | 'POLICIES_NOT_KEPT'
  /** The configuration of this host takes none. */
  | 'POLICIES_NOT_ACCEPTED'
  /** What came after this cursor is not known any more. */
  | 'CURSOR_EXPIRED'
  /** The process, or the controller, may not use the API. */
  | 'CALLER_DENIED'
  /** What the configuration lets others than root restore does not cover this. */
  | 'RESTORE_DENIED'
  /** A restore replaces something that its caller has not said that it has seen. */
  | 'RESTORE_NOT_ACCEPTED'
  /** The service is being ended: it begins nothing new. */
  | 'SERVICE_ENDING'
  /** Another living process is the service of this host. */
  | 'SERVICE_RUNNING'
  /** The socket cannot be made where and as the configuration says. */
  | 'SOCKET_UNUSABLE';

/** An error of the API. */
export class ApiError extends StillpointError<ApiErrorCode> {
  constructor(
    code: ApiErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
