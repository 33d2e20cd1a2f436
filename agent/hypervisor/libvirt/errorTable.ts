import { HypervisorError } from '../errors.ts';
import type { HypervisorErrorCode } from '../errors.ts';

/**
 * libvirt's error numbers (`virterror.h`) in our words. Decided by number, by the part of libvirt that
 * reported it, and for system errors by their errno; never by the text, which is translated and changes.
 */

/** What libvirt says about a call that failed. */
export interface LibvirtFailure {
  readonly code: number;
  readonly domain: number;
  readonly message: string;
  /** Of a system error (38): its errno; 0 without one. */
  readonly errno: number;
}

interface Meaning {
  readonly code: HypervisorErrorCode;
  readonly hint?: string;
  readonly retryable?: boolean;
}

const unreachable: Meaning = {
  code: 'HYPERVISOR_UNREACHABLE',
  hint: 'check that libvirtd runs and that its socket can be opened: systemctl status libvirtd; virsh version',
  retryable: true,
};
const locked: Meaning = {
  code: 'MACHINE_LOCKED',
  hint: 'another operation is busy with this machine; see it with: virsh domjobinfo MACHINE',
  retryable: true,
};
const denied: Meaning = {
  code: 'ACCESS_DENIED',
  hint: 'run as root or as a user whom libvirt lets manage machines, and check owner and mode of the path',
};
const noSpace: Meaning = { code: 'NO_SPACE', hint: 'free space on the file system of the path: df -h PATH' };
const definitionInvalid: Meaning = { code: 'DEFINITION_INVALID' };
const agentUnavailable: Meaning = {
  code: 'GUEST_AGENT_UNAVAILABLE',
  hint: 'look in the guest whether qemu-guest-agent runs: systemctl status qemu-guest-agent',
  retryable: true,
};
const unsupported: Meaning = { code: 'OPERATION_UNSUPPORTED' };
const checkpointUnusable: Meaning = { code: 'CHECKPOINT_UNUSABLE' };
const failed: Meaning = { code: 'OPERATION_FAILED' };

const systemError = 38;

/** `VIR_FROM_RPC` and `VIR_FROM_REMOTE`: the connection itself, not what was asked over it. */
const transportDomains = new Set([7, 13]);
const transportCodes = new Set([1, 5, 6, 39]);

/** Of a system error, by errno. */
const byErrno = new Map<number, Meaning>([
  [1, denied], // EPERM
  [13, denied], // EACCES
  [28, noSpace], // ENOSPC
  [122, noSpace], // EDQUOT
]);

const byNumber = new Map<number, Meaning>([
  [3, unsupported], // NO_SUPPORT
  [5, unreachable], // NO_CONNECT
  [6, unreachable], // INVALID_CONN
  [7, { code: 'MACHINE_NOT_FOUND' }], // INVALID_DOMAIN
  [16, definitionInvalid], // OS_TYPE
  [19, definitionInvalid], // NO_SOURCE
  [20, definitionInvalid], // NO_TARGET
  [21, definitionInvalid], // NO_NAME
  [22, definitionInvalid], // NO_OS
  [23, definitionInvalid], // NO_DEVICE
  [27, definitionInvalid], // XML_ERROR
  [28, definitionInvalid], // DOM_EXIST
  [29, denied], // OPERATION_DENIED
  [35, definitionInvalid], // XML_DETAIL
  [40, unreachable], // GNUTLS_ERROR
  [42, { code: 'MACHINE_NOT_FOUND', hint: 'stillpoint machines' }], // NO_DOMAIN
  [45, denied], // AUTH_FAILED
  [55, { code: 'MACHINE_STATE_INVALID', hint: 'look at the machine with: virsh domstate --reason MACHINE' }],
  [67, definitionInvalid], // CONFIG_UNSUPPORTED: the machine described cannot be had here
  [68, locked], // OPERATION_TIMEOUT: the state-change lock was not free within 30 s
  [74, unsupported], // ARGUMENT_UNSUPPORTED
  [78, { code: 'OPERATION_ABORTED' }], // OPERATION_ABORTED
  [79, denied], // AUTH_CANCELLED
  [83, { code: 'MACHINE_STATE_INVALID', hint: 'a block job is in the way: virsh blockjob MACHINE TARGET' }],
  [84, unsupported], // OPERATION_UNSUPPORTED
  [85, unreachable], // SSH
  [86, agentUnavailable], // AGENT_UNRESPONSIVE
  [87, locked], // RESOURCE_BUSY
  [88, denied], // ACCESS_DENIED
  [91, definitionInvalid], // CPU_INCOMPATIBLE
  [92, definitionInvalid], // XML_INVALID_SCHEMA
  [94, denied], // AUTH_UNAVAILABLE
  [97, agentUnavailable], // AGENT_UNSYNCED
  [98, unreachable], // LIBSSH
  [103, checkpointUnusable], // NO_DOMAIN_CHECKPOINT
  [109, checkpointUnusable], // CHECKPOINT_INCONSISTENT
]);

function meaningOf({ code, domain, errno }: LibvirtFailure): Meaning {
  if (code === systemError) {
    const known = byErrno.get(errno);
    if (known !== undefined) return known;
    return transportDomains.has(domain) ? unreachable : failed;
  }
  if (transportDomains.has(domain) && transportCodes.has(code)) return unreachable;
  return byNumber.get(code) ?? failed;
}

/** The typed error for what libvirt reported. */
export function errorOf(failure: LibvirtFailure): HypervisorError {
  const { code, ...rest } = meaningOf(failure);
  return new HypervisorError(code, failure.message, {
    ...rest,
    libvirt: { code: failure.code, domain: failure.domain },
  });
}
