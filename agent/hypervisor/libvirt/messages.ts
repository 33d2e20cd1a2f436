import { HypervisorError } from '../errors.ts';
import type { HypervisorErrorCode } from '../errors.ts';
import type { HypervisorEvent } from '../hypervisor.ts';
import type { Operations } from './operations.ts';

/** What parent and child say to each other over the IPC channel. */

export type OperationName = keyof Operations;

/** Parent to child: one operation. The next one is sent when this one is answered. */
export interface Request {
  readonly id: number;
  readonly operation: OperationName;
  readonly args: readonly unknown[];
}

/** A `HypervisorError` on its way from the child. */
export interface ErrorMessage {
  readonly code: HypervisorErrorCode;
  readonly message: string;
  readonly hint?: string | undefined;
  readonly retryable: boolean;
  readonly libvirt?: { readonly code: number; readonly domain: number } | undefined;
}

/** Child to parent. */
export type Reply =
  | { readonly kind: 'result'; readonly id: number; readonly value?: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: ErrorMessage }
  | { readonly kind: 'event'; readonly event: HypervisorEvent };

/** Form of an error that can be sent. What is not ours is a fault of the child's own code. */
export function errorMessage(error: unknown): ErrorMessage {
  if (error instanceof HypervisorError) {
    const { code, message, hint, retryable, libvirt } = error;
    return { code, message, hint, retryable, libvirt };
  }
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return { code: 'OPERATION_FAILED', message: `the libvirt child failed: ${message}`, retryable: false };
}

/** The error again, on the parent's side. */
export function errorFrom({ code, message, ...options }: ErrorMessage): HypervisorError {
  return new HypervisorError(code, message, options);
}

/** Whether a message that came over the channel has the form of a request. */
export function isRequest(message: unknown): message is Request {
  return (
    typeof message === 'object' &&
    message !== null &&
    'id' in message &&
    'operation' in message &&
    'args' in message &&
    Array.isArray(message.args)
  );
}

/** Whether a message that came over the channel has the form of a reply. */
export function isReply(message: unknown): message is Reply {
  return typeof message === 'object' && message !== null && 'kind' in message;
}
