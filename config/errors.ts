import { StillpointError } from '../common/errors.ts';

export type ConfigErrorCode =
  /** There is no configuration at this place. */
  | 'CONFIG_MISSING'
  | 'CONFIG_UNREADABLE'
  | 'CONFIG_INVALID'
  /** Policies that somebody has pushed cannot be used on this host. */
  | 'POLICIES_INVALID'
  /** It names no storage. */
  | 'NO_STORAGE';

/** One thing that is wrong in a configuration, and where. Lines and columns count from 1. */
export interface ConfigProblem {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** Dotted path of the key, such as `policies.default.mode`; empty for the whole file. */
  readonly key: string;
  readonly message: string;
}

/** A configuration that cannot be used; names everything that is wrong with it at once. */
export class ConfigError extends StillpointError<ConfigErrorCode> {
  readonly problems: readonly ConfigProblem[];

  constructor(
    code: ConfigErrorCode,
    message: string,
    options: {
      readonly hint?: string | undefined;
      readonly cause?: unknown;
      readonly problems?: readonly ConfigProblem[] | undefined;
    } = {},
  ) {
    super(message, { code, hint: options.hint, cause: options.cause });
    this.problems = options.problems ?? [];
  }
}

/** `file:line:column: key: message`, the form that editors can jump to. */
export function formatProblem({ file, line, column, key, message }: ConfigProblem): string {
  return `${file}:${line}:${column}: ${key === '' ? '' : `${key}: `}${message}`;
}
