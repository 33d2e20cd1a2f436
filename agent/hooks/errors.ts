import { StillpointError } from '../../common/errors.ts';

/** Closed set of what is wrong with a hook. */
export type HookErrorCode =
  /** Somebody else than root could have put another program there, or there is none. */
  | 'HOOK_UNSAFE'
  /** The program before a backup has failed, and the policy wants no backup then. */
  | 'HOOK_FAILED';

/** An error of a program that a policy names. */
export class HookError extends StillpointError<HookErrorCode> {
  constructor(
    code: HookErrorCode,
    message: string,
    options: { readonly hint?: string; readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(message, { code, ...options });
  }
}
