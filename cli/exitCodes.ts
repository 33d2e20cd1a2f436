import type { EnrolmentErrorCode } from '../agent/enrolment/errors.ts';
import type { ServiceErrorCode } from '../agent/errorCodes.ts';
import type { IdentityErrorCode } from '../agent/identity/errors.ts';
import type { JobRow } from '../agent/jobs/job.ts';
import type { ObserveErrorCode } from '../agent/observe/errors.ts';
import type { ReportErrorCode } from '../agent/report/errors.ts';
import type { CaErrorCode } from '../controller/caErrors.ts';
import type { ReceiverErrorCode } from '../controller/receiverError.ts';
import type { CliErrorCode } from './errors.ts';

/** What each exit code means; the only ones there are. */
export const exitMeanings = {
  0: 'done',
  1: 'failed',
  2: 'usage or configuration',
  3: 'partly done',
  4: 'not found',
  5: 'data damaged',
  6: 'storage unreachable or full',
  7: 'busy',
  8: 'refused (unsupported machine)',
  9: 'unfinished work needs an operator',
  130: 'cancelled',
} as const;

export type ExitCode = keyof typeof exitMeanings;

/** Every code of every error class; the compiler refuses a table in which one is missing. */
type AnyErrorCode =
  | ServiceErrorCode
  | ReportErrorCode
  | ObserveErrorCode
  | ReceiverErrorCode
  | CliErrorCode
  | IdentityErrorCode
  | EnrolmentErrorCode
  | CaErrorCode;

/** The exit code of each error code: the one table. */
export const exitCodes = {
  ACCESS_DENIED: 1,
  AGENT_DIED: 1,
  ALERT_FILE_UNUSABLE: 2,
  ALERT_NOT_DELIVERED: 1,
  AGENT_STOPPED: 1,
  BACKUP_AMBIGUOUS: 2,
  BACKUP_DAMAGED: 5,
  BACKUP_EXISTS: 1,
  BACKUP_FENCED: 7,
  BACKUP_LOCKED: 8,
  BACKUP_NOT_FOUND: 4,
  BACKUP_PROTECTED: 8,
  CALLER_DENIED: 1,
  CANCELLED: 130,
  CANNOT_BEGIN_BACKUP: 1,
  CANNOT_CREATE_EMPTY_DISK_IMAGE: 1,
  CANNOT_EXPORT_IMAGE: 1,
  CANNOT_LISTEN: 1,
  CANNOT_MERGE_DISK_IMAGES: 1,
  CANNOT_PUT_BACK: 9,
  CANNOT_RENAME_DISK_IMAGE: 1,
  CANNOT_RESTORE_MACHINE: 1,
  CANNOT_SAVE_MACHINE_STATE: 1,
  CANNOT_START_MACHINE: 1,
  CANNOT_THAW: 1,
  CERTIFICATE_EXPIRED: 1,
  CERTIFICATE_INVALID: 1,
  CERTIFICATE_NOT_YET_VALID: 1,
  CERTIFICATE_UNKNOWN: 4,
  CHECKPOINTS_PRESENT: 8,
  CHECKPOINT_UNUSABLE: 1,
  CHUNK_MISSING: 5,
  COLLECTION_UNSAFE: 8,
  CONFIG_INVALID: 2,
  CONFIG_MISSING: 2,
  CONFIG_UNREADABLE: 2,
  CONTROLLER_REFUSED: 1,
  CONTROLLER_UNREACHABLE: 1,
  CONTROLLER_UNTRUSTED: 8,
  CORRUPT_DISK_IMAGE_FOUND: 5,
  CROSS_FILE_SYSTEM: 1,
  CURSOR_EXPIRED: 1,
  DEADLINE_EXCEEDED: 1,
  DEADLINE_TOO_LONG: 2,
  DEFINITION_INVALID: 1,
  DEFINITION_UNUSABLE: 5,
  ENROLMENT_REFUSED: 8,
  FILE_EXISTS: 8,
  FILE_MISSING: 5,
  FILE_NOT_FOUND: 4,
  FILE_SYSTEM_UNCLEAR: 2,
  FILE_SYSTEM_UNSUPPORTED: 8,
  FILE_UNREADABLE: 5,
  FOREIGN_CONTENT: 1,
  GROUP_FAILED: 1,
  GUEST_AGENT_UNAVAILABLE: 1,
  GUEST_WITHOUT_ROOM: 1,
  GUEST_NOT_FROZEN: 1,
  HOST_ALREADY_ENROLLED: 8,
  HOOK_FAILED: 1,
  HOOK_UNSAFE: 8,
  HOST_DEVICE_UNSUPPORTED: 8,
  HOST_ENROLLED: 8,
  HOST_ID_MISSING: 2,
  HYPERVISOR_UNREACHABLE: 1,
  IDEMPOTENCY_KEY_REUSED: 8,
  IDENTITY_DAMAGED: 5,
  IDENTITY_REPLACED: 7,
  IMAGE_LOCKED: 7,
  IMAGE_TOOL_FAILED: 1,
  IMAGE_UNSUPPORTED: 8,
  INTERNAL_ERROR: 1,
  INTERNAL_SNAPSHOTS: 8,
  INTERRUPTED: 130,
  JOB_AMBIGUOUS: 2,
  JOB_NOT_FOUND: 4,
  JOB_RECORD_UNREADABLE: 9,
  JOB_STATE_INVALID: 8,
  JOURNAL_UNUSABLE: 1,
  KEY_SLOT_IN_USE: 8,
  KEY_SLOT_LAST: 8,
  KEY_SLOT_NOT_FOUND: 4,
  KEY_WRONG: 2,
  MACHINE_BUSY: 7,
  MACHINE_EXCLUDED: 8,
  MACHINE_HAS_MANAGED_SAVE: 8,
  MACHINE_HAS_SNAPSHOTS: 8,
  MACHINE_INTERFERED: 1,
  MACHINE_LEFT: 8,
  MACHINE_LOCKED: 7,
  MACHINE_NOT_FOUND: 4,
  MACHINE_OFF: 8,
  MACHINE_RUNNING: 8,
  MACHINE_STATE_INVALID: 1,
  MACHINE_STATE_UNSUITABLE: 8,
  MACHINE_STOPPED: 1,
  MACHINE_TRANSIENT: 8,
  MANIFEST_INVALID: 5,
  MANIFEST_TOO_NEW: 8,
  MEMORY_NOT_CONVERGING: 1,
  MERGE_DEADLINE_EXCEEDED: 1,
  MERGE_INCOMPLETE: 1,
  METRICS_UNAVAILABLE: 1,
  MISSING_NECESSARY_FILES: 8,
  MOUNT_BUSY: 7,
  MOUNT_FAILED: 1,
  MOUNT_NOT_FOUND: 4,
  NAME_INVALID: 2,
  NAME_TAKEN: 8,
  COPY_FAILED: 6,
  DEVICE_UNSUITABLE: 8,
  DEVICE_BUSY: 7,
  DEVICE_HALF_WRITTEN: 1,
  NBD_CLOSED: 1,
  NBD_CONTEXT_MISSING: 1,
  NBD_EXPORT_NOT_FOUND: 1,
  NBD_PROTOCOL: 1,
  NBD_RANGE_INVALID: 1,
  NBD_SERVER_ERROR: 1,
  NBD_SOCKET_UNUSABLE: 1,
  NBD_SOURCE_FAILED: 1,
  NBD_TIMEOUT: 1,
  NBD_UNREACHABLE: 1,
  NOT_AVAILABLE: 2,
  NOT_CONFIRMED: 2,
  NOT_ENOUGH_DISK_SPACE: 6,
  NO_MEMORY_STATE: 8,
  NO_SPACE: 6,
  NO_STORAGE: 2,
  NO_VOLUMES: 8,
  OBJECT_LOCKED: 8,
  OBJECT_LOCK_NOT_ENFORCED: 8,
  OPERATION_ABORTED: 1,
  OPERATION_FAILED: 1,
  OPERATION_UNSUPPORTED: 8,
  OUTBOX_DAMAGED: 5,
  OUTBOX_UNUSABLE: 1,
  OUTPUT_FAILED: 1,
  OVERLAY_FULL: 1,
  PARENT_UNUSABLE: 5,
  PATH_TAKEN: 8,
  POOL_UNUSABLE: 2,
  QUOTA_EXCEEDED: 6,
  RELATIVE_BACKING: 8,
  REPORT_STORE_UNUSABLE: 1,
  REPOSITORY_DAMAGED: 5,
  REPOSITORY_EXISTS: 8,
  REPOSITORY_NOT_FOUND: 4,
  REPOSITORY_TOO_NEW: 8,
  REQUEST_INVALID: 2,
  RESTORE_DENIED: 8,
  RESTORE_NOT_ACCEPTED: 2,
  RESTORE_TARGET_UNCLEAR: 2,
  RETAIN_DIRECTORY_CLOSED: 2,
  RETAIN_DIRECTORY_ELSEWHERE: 2,
  RETAIN_DIRECTORY_READ_ONLY: 6,
  REVOCATIONS_DAMAGED: 5,
  SCRATCH_FULL: 1,
  SERVICE_ENDING: 1,
  SERVICE_INCOMPATIBLE: 8,
  SERVICE_LOST: 9,
  SERVICE_RUNNING: 7,
  SERVICE_UNREACHABLE: 1,
  SESSION_STATE_INVALID: 1,
  SOCKET_UNUSABLE: 2,
  STATE_FORMAT_UNSUPPORTED: 8,
  STEP_DEADLINE_EXCEEDED: 1,
  STORAGE_DENIED: 6,
  STORAGE_FAILED: 6,
  STORAGE_FULL: 6,
  STORAGE_GROUP_UNUSABLE: 6,
  STORAGE_UNSUITABLE: 8,
  STORAGE_NOT_CONFIGURED: 2,
  STORAGE_READ_ONLY: 6,
  STORAGE_SETTINGS_INVALID: 2,
  STORAGE_UNREACHABLE: 6,
  STORE_WEAKENED: 6,
  TEMPLATE_NAME_TAKEN: 2,
  TOGETHER_UNSUITABLE: 8,
  TOO_MANY_REQUESTS: 7,
  TOKEN_EXPIRED: 8,
  TOKEN_OF_ANOTHER_HOST: 8,
  TOKEN_REFUSED: 8,
  TOKEN_UNKNOWN: 8,
  TOKEN_USED: 8,
  TPM_UNSUPPORTED: 8,
  UNFINISHED_JOB: 9,
  CANNOT_SERVE: 1,
  INSTANT_UNSUPPORTED: 8,
  ISOLATION_IMPOSSIBLE: 8,
  NETWORK_MISSING: 8,
  NOTHING_TO_SEE: 8,
  MACHINE_CUT_OFF: 9,
  NOT_LOCAL: 1,
  USAGE: 2,
  VOLUME_TOO_LARGE: 8,
  VOLUME_UNKNOWN: 4,
  VOLUME_BUSY: 7,
  VOLUME_ENCRYPTED: 8,
  VOLUME_NOT_A_FILE: 8,
  VOLUME_RAW: 8,
  VOLUME_SHARED: 8,
  VOLUME_UNSUPPORTED: 8,
  WORK_DIRECTORY_UNSAFE: 2,
  WRITTEN_DIFFERS: 5,
  WRONG_BLOCK_GRAPH: 1,
  XML_CHAIN_UNKNOWN: 1,
  XML_ELEMENT_MISSING: 1,
  XML_INCONSISTENCY: 8,
  XML_INTERFACE_NOT_FOUND: 1,
  XML_INVALID: 1,
  XML_VALUE_INVALID: 1,
  XML_VOLUME_NOT_A_FILE: 8,
  XML_VOLUME_NOT_FOUND: 1,
} as const satisfies Record<AnyErrorCode, ExitCode>;

/** The exit code for an error's code; 1 for one that a job of another version left in the journal. */
export function exitCodeOf(code: string): ExitCode {
  const known: Readonly<Record<string, ExitCode>> = exitCodes;
  return (Object.hasOwn(known, code) ? known[code] : undefined) ?? 1;
}

/** The exit code for the way in which a job ended. A job that still holds its machine needs somebody. */
export function exitCodeOfJob(job: Pick<JobRow, 'state' | 'holdsMachine' | 'error'>): ExitCode {
  if (job.holdsMachine) return 9;
  if (job.state === 'finished') return 0;
  if (job.state === 'cancelled') return 130;
  return exitCodeOf(job.error?.code ?? 'INTERNAL_ERROR');
}

/** One exit code for several pieces of work: that of a single one, else 3 where some went well and others did not. */
export function combinedExitCode(codes: readonly ExitCode[]): ExitCode {
  const failed = codes.filter((code) => code !== 0);
  const [first] = failed;
  if (first === undefined) return 0;
  if (codes.length === 1) return first;
  if (failed.includes(9)) return 9;
  if (failed.includes(130)) return 130;
  if (failed.length < codes.length) return 3;
  return failed.every((code) => code === first) ? first : 1;
}
