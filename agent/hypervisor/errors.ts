import { StillpointError } from '../../common/errors.ts';

/** Closed set of what can go wrong between us and libvirt. Never chosen by an error's text. */
export type HypervisorErrorCode =
  /** libvirtd does not answer or cannot be reached. */
  | 'HYPERVISOR_UNREACHABLE'
  /** The operation took longer than its deadline; libvirtd may still be at it. */
  | 'DEADLINE_EXCEEDED'
  | 'MACHINE_NOT_FOUND'
  /** libvirt 55: not possible in the machine's present state. */
  | 'MACHINE_STATE_INVALID'
  /** Another operation holds the machine's state-change lock. */
  | 'MACHINE_LOCKED'
  /** A job was aborted on request. */
  | 'OPERATION_ABORTED'
  | 'OPERATION_UNSUPPORTED'
  /** No agent answers in the guest. */
  | 'GUEST_AGENT_UNAVAILABLE'
  | 'ACCESS_DENIED'
  | 'NO_SPACE'
  | 'DEFINITION_INVALID'
  /** libvirt 103 and 109: a checkpoint that is not there, or whose bitmap is missing or broken. */
  | 'CHECKPOINT_UNUSABLE'
  | 'OPERATION_FAILED';

/** An error of the hypervisor port. `libvirt` keeps its numbers for the log. */
export class HypervisorError extends StillpointError<HypervisorErrorCode> {
  readonly libvirt: { readonly code: number; readonly domain: number } | undefined;

  constructor(
    code: HypervisorErrorCode,
    message: string,
    options: {
      readonly hint?: string | undefined;
      readonly cause?: unknown;
      readonly retryable?: boolean | undefined;
      readonly libvirt?: { readonly code: number; readonly domain: number } | undefined;
    } = {},
  ) {
    super(message, { code, hint: options.hint, cause: options.cause, retryable: options.retryable });
    this.libvirt = options.libvirt;
  }
}
