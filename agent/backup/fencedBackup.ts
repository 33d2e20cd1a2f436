import type { StillpointError } from '../../common/errors.ts';
import type { RepositoryErrorCode } from '../../storage/repository/errors.ts';

const fenced: RepositoryErrorCode = 'BACKUP_FENCED';

/**
 * A collection was told to give this backup up: its storage can never take it any more, so nobody needs to wait for
 * that storage to be put right.
 */
export function canNeverBeStored(cause: StillpointError | undefined): boolean {
  return cause?.code === fenced;
}
