import { type ServiceError, status } from '@grpc/grpc-js';
import { detailOf, recordOfDetail } from '../../agent/api/grpcErrors.ts';
import type { ErrorDetail } from '../../proto/generated/stillpoint/v1/errors.ts';
import { StillpointError } from '../../common/errors.ts';
import { CliError } from '../errors.ts';

/** An error that the service has told. */
export class ServiceFailure extends StillpointError {
  constructor(detail: ErrorDetail) {
    const { code, message, hint, retryable } = recordOfDetail(detail);
    super(message, { code, hint, retryable });
  }
}

const standalone = 'or without the service: the same command with --standalone';

/**
 * What a call of the service failed with, in our words; anything that is no error of a call stays what it is.
 * @param meanwhile what the service was doing, for when it went away
 */
export function failureOf(
  error: unknown,
  meanwhile?: { readonly what: string; readonly next: string },
): unknown {
  if (!isServiceError(error)) return error;
  const detail = detailOf(error);
  if (detail !== undefined) return new ServiceFailure(detail);
  if (error.code === status.UNIMPLEMENTED)
    return new CliError(
      'SERVICE_INCOMPATIBLE',
      `the service of this host does not know what is asked of it (${error.details})`,
      `restart it after an upgrade: systemctl restart stillpoint-agent; ${standalone}`,
    );
  if (error.code === status.UNAVAILABLE && meanwhile !== undefined)
    return new CliError(
      'SERVICE_LOST',
      `the service of this host went away ${meanwhile.what}`,
      meanwhile.next,
    );
  return new CliError(
    'SERVICE_UNREACHABLE',
    `the service of this host does not answer (${error.details})`,
    `systemctl status stillpoint-agent; ${standalone}`,
  );
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && 'code' in error && 'details' in error && 'metadata' in error;
}
