import { HypervisorError } from '../../agent/hypervisor/errors.ts';
import { errorOf } from '../../agent/hypervisor/libvirt/errorTable.ts';

/** libvirt's own numbers (`virErrorNumber`, `virErrorDomain`) as seen on 9.0. */
const refusals = {
  internal: [1, 10],
  invalidArgument: [8, 10],
  operationFailed: [9, 10],
  xml: [27, 20],
  system: [38, 10],
  noDomain: [42, 10],
  operationInvalid: [55, 10],
  configUnsupported: [67, 20],
  timeout: [68, 10],
  argumentUnsupported: [74, 10],
  aborted: [78, 10],
  blockCopyActive: [83, 10],
  operationUnsupported: [84, 10],
  noCheckpoint: [103, 78],
  checkpointInconsistent: [109, 78],
  agentUnresponsive: [86, 10],
} as const satisfies Record<string, readonly [code: number, domain: number]>;

/** The error that libvirt gives, in the words of the port; `errno` for system errors. */
export function refusal(kind: keyof typeof refusals, message: string, errno = 0): HypervisorError {
  const [code, domain] = refusals[kind];
  return errorOf({ code, domain, message, errno });
}

export function unreachable(): HypervisorError {
  return new HypervisorError('HYPERVISOR_UNREACHABLE', 'the simulated libvirtd is not running', {
    retryable: true,
  });
}

/** Who ended an operation in the middle. */
export type InterruptionReason = 'libvirtd' | 'qemu' | 'host' | 'abort';

/** Thrown inside an operation of the simulator when something of the world stops it; never leaves it. */
export class Interruption extends Error {
  readonly reason: InterruptionReason;

  constructor(reason: InterruptionReason) {
    super(`interrupted: ${reason}`);
    this.reason = reason;
  }
}
