import { isErrno, StillpointError } from '../common/errors.ts';

/** Closed set of what can go wrong with a storage or a backup in it. */
export type StorageErrorCode =
  /** The storage's place is not there or does not answer. */
  | 'STORAGE_UNREACHABLE'
  | 'STORAGE_FULL'
  /** The configuration allows it no more. */
  | 'QUOTA_EXCEEDED'
  /** No storage of this kind can hold so much of one volume. */
  | 'VOLUME_TOO_LARGE'
  | 'STORAGE_READ_ONLY'
  | 'STORAGE_DENIED'
  /** What the configuration says of a storage cannot be used: an address, a file with certificates or credentials. */
  | 'STORAGE_SETTINGS_INVALID'
  /** A rename cannot bring this file into the storage; a copy can. */
  | 'CROSS_FILE_SYSTEM'
  | 'BACKUP_NOT_FOUND'
  /** More than one backup answers to this name. */
  | 'BACKUP_AMBIGUOUS'
  /** The place that a backup wants is taken; nothing is ever overwritten. */
  | 'BACKUP_EXISTS'
  | 'BACKUP_DAMAGED'
  /** It may not be removed before its protection is taken off. */
  | 'BACKUP_PROTECTED'
  /** The store keeps it until a time, and nobody can delete it before. */
  | 'BACKUP_LOCKED'
  /** The same of an object of a store. */
  | 'OBJECT_LOCKED'
  | 'MANIFEST_INVALID'
  /** Written by a newer version in a form that this one does not know. */
  | 'MANIFEST_TOO_NEW'
  /** A file that the manifest or a step names is not there. */
  | 'FILE_MISSING'
  /** Something in the storage is not what we put there: a link, a directory, another job's work. */
  | 'FOREIGN_CONTENT'
  /** No increment can be built on this stored volume; a full read can take its place. */
  | 'PARENT_UNUSABLE'
  /** A name that may not stand in a storage. */
  | 'NAME_INVALID'
  | 'STORAGE_FAILED';

/** An error of a storage or of a backup in it. */
export class StorageError extends StillpointError<StorageErrorCode> {
  constructor(
    code: StorageErrorCode,
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

/** What each of the system's answers means for a storage. */
const meanings: readonly {
  readonly errno: readonly string[];
  readonly code: StorageErrorCode;
  readonly hint: (location: string) => string;
  readonly retryable?: boolean;
}[] = [
  {
    errno: ['ENOSPC', 'EDQUOT'],
    code: 'STORAGE_FULL',
    hint: (location) =>
      `df -h ${location}; free space there (stillpoint list; stillpoint delete BACKUP), then try again`,
  },
  {
    errno: ['EROFS'],
    code: 'STORAGE_READ_ONLY',
    hint: (location) => `mount -o remount,rw for the file system of ${location}`,
  },
  {
    errno: ['EACCES', 'EPERM'],
    code: 'STORAGE_DENIED',
    hint: (location) => `ls -ld ${location}; run as root`,
  },
  {
    errno: ['EIO', 'ESTALE', 'ENOTCONN', 'ETIMEDOUT', 'EHOSTDOWN', 'ENODEV', 'ENXIO'],
    code: 'STORAGE_UNREACHABLE',
    hint: (location) => `findmnt -T ${location}; journalctl -k`,
    retryable: true,
  },
];

/**
 * Runs an operation on a storage and turns the system's errors into StorageError. What is a StorageError
 * already, or no system error at all (an abort, a broken invariant), passes through.
 */
export async function inStorage<T>(location: string, what: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    if (error instanceof StillpointError || !isSystemError(error)) throw error;
    const meaning = meanings.find(({ errno }) => errno.some((code) => isErrno(error, code)));
    throw new StorageError(meaning?.code ?? 'STORAGE_FAILED', `${what}: ${error.message}`, {
      cause: error,
      hint: meaning?.hint(location) ?? `ls -la ${location}`,
      retryable: meaning?.retryable,
    });
  }
}

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'syscall' in error;
}
