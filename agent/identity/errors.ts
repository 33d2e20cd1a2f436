import { StillpointError } from '../../common/errors.ts';

export type IdentityErrorCode =
  /** What is kept of the host's identity cannot be used. */
  | 'IDENTITY_DAMAGED'
  /** The list of certificates that were revoked cannot be used. */
  | 'REVOCATIONS_DAMAGED'
  /** Another process has replaced it meanwhile. */
  | 'IDENTITY_REPLACED'
  /** The host has no identifier of its own. */
  | 'HOST_ID_MISSING'
  /** A certificate that was given out does not fit the key, the host or the CA. */
  | 'CERTIFICATE_INVALID'
  | 'CERTIFICATE_EXPIRED'
  /** By the clock of this host. */
  | 'CERTIFICATE_NOT_YET_VALID';

/** An error of the host's keys and certificates. */
export class IdentityError extends StillpointError<IdentityErrorCode> {
  constructor(
    code: IdentityErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
