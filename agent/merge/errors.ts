import { StillpointError } from '../../common/errors.ts';

/** Closed set of what stops a merge. In every one of these cases the machine's chain is complete. */
export type MergeErrorCode =
  /** The file system of the images has no room for what must be copied. */
  | 'NOT_ENOUGH_DISK_SPACE'
  | 'CANNOT_MERGE_DISK_IMAGES'
  /** The image says that it is complete, but does not hold all that its frozen image holds (trap 2). */
  | 'MERGE_INCOMPLETE'
  /** The machine stopped while its images were merged. */
  | 'MACHINE_STOPPED'
  | 'MERGE_DEADLINE_EXCEEDED';

/** An error of the merge stage. */
export class MergeError extends StillpointError<MergeErrorCode> {
  constructor(
    code: MergeErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
