import { withoutSecrets } from './redaction.ts';

/** What every error of Stillpoint carries besides its message. */
export interface ErrorDetails<Code extends string> {
  /** One of the module's closed set of codes; printed in front of the message. */
  readonly code: Code;
  /** What the operator can type or do next. */
  readonly hint?: string | undefined;
  /** What caused it. */
  readonly cause?: unknown;
  /** Whether the same call can succeed later without anybody changing anything. */
  readonly retryable?: boolean | undefined;
}

/**
 * Base of the one error class that each module has. Functions return or throw these; only an edge (CLI,
 * service loop) logs or prints them.
 */
export abstract class StillpointError<Code extends string = string> extends Error {
  readonly code: Code;
  readonly hint: string | undefined;
  readonly retryable: boolean;

  constructor(message: string, details: ErrorDetails<Code>) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = details.code;
    this.hint = details.hint;
    this.retryable = details.retryable ?? false;
  }
}

/** An error as it is stored in the journal and printed with `--json`. */
export interface ErrorRecord {
  readonly code: string;
  readonly message: string;
  readonly hint?: string | undefined;
  readonly retryable: boolean;
}

/**
 * The storable form of anything that was thrown; what is not ours becomes INTERNAL_ERROR. It goes to the journal, over
 * the network and to webhooks, so secrets are taken out that are known by their form: messages of libvirt may quote a
 * definition.
 */
export function errorRecord(error: unknown): ErrorRecord {
  const message = withoutSecrets(messageOf(error));
  if (!(error instanceof StillpointError)) return { code: 'INTERNAL_ERROR', message, retryable: false };
  const { code, hint, retryable } = error;
  return hint === undefined
    ? { code, message, retryable }
    : { code, message, hint: withoutSecrets(hint), retryable };
}

/** What a thrown thing says. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** True when `error` is a Node.js system error with the given code, such as `ENOENT`. */
export function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}

/** Marks a branch that the types rule out; throws if it is reached all the same. */
export function assertNever(value: never): never {
  throw new Error(`unexpected value: ${JSON.stringify(value)}`);
}
