import { StillpointError } from '../../common/errors.ts';

/** Closed set of what stops a snapshot; names that the heritage's operators know are kept (SC-13). */
export type SnapshotErrorCode =
  // Refused before anything is touched.
  | 'MACHINE_OFF'
  /** Mode `offline` reads images that nobody writes to. */
  | 'MACHINE_RUNNING'
  | 'MACHINE_TRANSIENT'
  | 'MACHINE_STATE_UNSUITABLE'
  /** It was migrated to another host, which backs it up now, or libvirt does not know it any more. */
  | 'MACHINE_LEFT'
  | 'HOST_DEVICE_UNSUPPORTED'
  | 'TPM_UNSUPPORTED'
  | 'NO_VOLUMES'
  | 'VOLUME_UNSUPPORTED'
  | 'VOLUME_RAW'
  | 'VOLUME_SHARED'
  | 'VOLUME_ENCRYPTED'
  | 'VOLUME_BUSY'
  | 'IMAGE_LOCKED'
  | 'INTERNAL_SNAPSHOTS'
  | 'CHECKPOINTS_PRESENT'
  | 'RELATIVE_BACKING'
  | 'MISSING_NECESSARY_FILES'
  | 'CORRUPT_DISK_IMAGE_FOUND'
  | 'XML_INCONSISTENCY'
  | 'NOT_ENOUGH_DISK_SPACE'
  | 'RETAIN_DIRECTORY_ELSEWHERE'
  | 'RETAIN_DIRECTORY_READ_ONLY'
  /** QEMU's user cannot get at the frozen images there. */
  | 'RETAIN_DIRECTORY_CLOSED'
  /** Others than root could change what we keep there. */
  | 'WORK_DIRECTORY_UNSAFE'
  // Went wrong on the way.
  | 'CANNOT_CREATE_EMPTY_DISK_IMAGE'
  | 'CANNOT_BEGIN_BACKUP'
  /** The policy wants the guest's file systems frozen at T1, and they were not. */
  | 'GUEST_NOT_FROZEN'
  /** The guest's file systems may still be frozen: its writes wait. */
  | 'CANNOT_THAW'
  /** The guest overwrites faster than a volume is read, and there is no more room for what it overwrote. */
  | 'SCRATCH_FULL'
  /** The guest stands still until somebody makes room for what it writes. */
  | 'GUEST_WITHOUT_ROOM'
  /** The guest writes faster than its volumes are stored, and what it wrote must still be merged. */
  | 'OVERLAY_FULL'
  /** The guest changes its memory faster than it can be written. */
  | 'MEMORY_NOT_CONVERGING'
  /** Another machine of a group that has one T1 could not be backed up. */
  | 'GROUP_FAILED'
  | 'CANNOT_EXPORT_IMAGE'
  | 'CANNOT_SAVE_MACHINE_STATE'
  | 'CANNOT_RENAME_DISK_IMAGE'
  | 'CANNOT_RESTORE_MACHINE'
  /** The machine came back on other images than it must have: it was stopped before it ran (trap 1). */
  | 'WRONG_BLOCK_GRAPH'
  /** Somebody started, changed or moved the machine while the job was at it. */
  | 'MACHINE_INTERFERED';

/** An error of the snapshot stage. */
export class SnapshotError extends StillpointError<SnapshotErrorCode> {
  constructor(
    code: SnapshotErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
