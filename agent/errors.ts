import { StillpointError } from '../common/errors.ts';

export type AgentErrorCode =
  /** A command or a job names a storage that the configuration does not have. */
  | 'STORAGE_NOT_CONFIGURED'
  /** None of the storages that stand in for each other can take a backup. */
  | 'STORAGE_GROUP_UNUSABLE'
  /** What was asked for can be done to storages of another kind only. */
  | 'STORAGE_UNSUITABLE'
  | 'MACHINE_EXCLUDED'
  /** A template cannot have the name of a machine: their backups would not be told apart. */
  | 'TEMPLATE_NAME_TAKEN'
  /** Several machines have one T1 in mode `disk` only. */
  | 'TOGETHER_UNSUITABLE'
  /** A storage pool that is not there, or whose volumes are not files. */
  | 'POOL_UNUSABLE';

/** An error of a request to the agent. */
export class AgentError extends StillpointError<AgentErrorCode> {
  constructor(
    code: AgentErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
