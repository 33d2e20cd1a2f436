import { StillpointError } from '../../common/errors.ts';

export type EnrolmentErrorCode =
  | 'CONTROLLER_UNREACHABLE'
  /** Who answers there is not the controller that is meant, or cannot prove it. */
  | 'CONTROLLER_UNTRUSTED'
  /** Not known, expired, used, or for another host. */
  | 'TOKEN_REFUSED'
  /** Another host has a certificate with the identifier of this one. */
  | 'HOST_ALREADY_ENROLLED'
  /** The controller gives this host no certificate, for another reason. */
  | 'ENROLMENT_REFUSED';

/** An error of joining a controller, or of asking it for a certificate. */
export class EnrolmentError extends StillpointError<EnrolmentErrorCode> {
  constructor(
    code: EnrolmentErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
