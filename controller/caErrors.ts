import { StillpointError } from '../common/errors.ts';

export type CaErrorCode =
  | 'TOKEN_UNKNOWN'
  | 'TOKEN_EXPIRED'
  /** For another request than the one that is made with it now. */
  | 'TOKEN_USED'
  /** The token is for another host. */
  | 'TOKEN_OF_ANOTHER_HOST'
  /** A host that has a valid certificate can be given another first one only for a token that is for this host. */
  | 'HOST_ENROLLED'
  /** The request for a certificate cannot be used. */
  | 'REQUEST_INVALID'
  /** No certificate fits what was named. */
  | 'CERTIFICATE_UNKNOWN';

/** An error of the controller's certificate authority. */
export class CaError extends StillpointError<CaErrorCode> {
  constructor(
    code: CaErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown } = {},
  ) {
    super(message, { code, ...options });
  }
}
