import { StillpointError } from '../../common/errors.ts';

/** Closed set of what can go wrong with a repository. */
export type RepositoryErrorCode =
  | 'REPOSITORY_NOT_FOUND'
  /** There is one already; nothing is ever overwritten. */
  | 'REPOSITORY_EXISTS'
  /** It asks for a version or a feature that this version does not know. */
  | 'REPOSITORY_TOO_NEW'
  /** Something that is stored is not what was stored. */
  | 'REPOSITORY_DAMAGED'
  /** Data that something refers to is in no pack. */
  | 'CHUNK_MISSING'
  /** No key slot opens with this secret, or the secret has not the form that its kind has. */
  | 'KEY_WRONG'
  /** The key of this host writes, and does not read data. */
  | 'KEY_WRITE_ONLY'
  | 'KEY_SLOT_NOT_FOUND'
  /** Without this slot nobody could open the repository any more. */
  | 'KEY_SLOT_LAST'
  /** This host opens the repository by this slot. */
  | 'KEY_SLOT_IN_USE'
  /** Somebody declared the session of this backup dead; it can never be committed. */
  | 'BACKUP_FENCED'
  /** The store has lost an ability that the repository relies on since it was made. */
  | 'STORE_WEAKENED'
  /** Backups are to be locked, and the store was seen not to do it, or nobody has looked. */
  | 'OBJECT_LOCK_NOT_ENFORCED'
  /** The store cannot keep a collection apart from those who write meanwhile. */
  | 'COLLECTION_UNSAFE'
  /** A session was used in an order that it does not have. */
  | 'SESSION_STATE_INVALID';

/** An error of a repository: its objects, its keys, its sessions. */
export class RepositoryError extends StillpointError<RepositoryErrorCode> {
  constructor(
    code: RepositoryErrorCode,
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

/** The error of an object that is not what was stored. */
export function damaged(what: string, why: string, cause?: unknown): RepositoryError {
  return new RepositoryError('REPOSITORY_DAMAGED', `${what} is damaged: ${why}`, {
    cause,
    hint: 'stillpoint verify --all --data names every backup that is touched',
  });
}
