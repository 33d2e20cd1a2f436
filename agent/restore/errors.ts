import { StillpointError } from '../../common/errors.ts';

/** Closed set of what stops a restore. */
export type RestoreErrorCode =
  // Refused while planning; nothing is touched.
  | 'RESTORE_TARGET_UNCLEAR'
  | 'NAME_TAKEN'
  | 'NAME_INVALID'
  | 'PATH_TAKEN'
  | 'NO_MEMORY_STATE'
  /** The machine would not start: what its network cards were connected to is not on this host. */
  | 'NETWORK_MISSING'
  | 'VOLUME_UNKNOWN'
  /** It was, or the place is, a device or on the network; only files are put in place. */
  | 'VOLUME_NOT_A_FILE'
  /** Where a device is to be overwritten: it is none, it is too small, or its volume cannot be opened. */
  | 'DEVICE_UNSUITABLE'
  /** It is mounted, open, or a disk of a machine. */
  | 'DEVICE_BUSY'
  | 'MACHINE_HAS_SNAPSHOTS'
  | 'MACHINE_HAS_MANAGED_SAVE'
  | 'NOT_ENOUGH_DISK_SPACE'
  | 'DEFINITION_UNUSABLE'
  | 'STATE_FORMAT_UNSUPPORTED'
  /** The operator said no. */
  | 'NOT_CONFIRMED'
  | 'INSTANT_UNSUPPORTED'
  | 'ISOLATION_IMPOSSIBLE'
  | 'NOTHING_TO_SEE'
  // On the way; what was there before is put back.
  | 'BACKUP_DAMAGED'
  /** A file of the backup could not be read, or its copy not be written. */
  | 'COPY_FAILED'
  /** Of a block device that is overwritten nothing can be put back. */
  | 'DEVICE_HALF_WRITTEN'
  | 'WRITTEN_DIFFERS'
  | 'CANNOT_SERVE'
  | 'CANNOT_START_MACHINE'
  | 'CANNOT_PUT_BACK'
  // After an instant restore has started its machine, which stays.
  | 'MACHINE_CUT_OFF'
  | 'NOT_LOCAL'
  // Of who only looks into a backup.
  | 'VOLUME_ENCRYPTED'
  | 'MOUNT_FAILED'
  | 'MOUNT_BUSY'
  | 'MOUNT_NOT_FOUND'
  /** No file system was found that can be read without the host's kernel. */
  | 'FILE_SYSTEM_UNSUPPORTED'
  /** Which of several file systems is meant must be said. */
  | 'FILE_SYSTEM_UNCLEAR'
  | 'FILE_NOT_FOUND'
  /** It is in the file system of the guest, and cannot be taken out of it. */
  | 'FILE_UNREADABLE'
  | 'FILE_EXISTS'
  /** Others than root could change where files of a guest go. */
  | 'WORK_DIRECTORY_UNSAFE';

/** An error of a restore. */
export class RestoreError extends StillpointError<RestoreErrorCode> {
  constructor(
    code: RestoreErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
