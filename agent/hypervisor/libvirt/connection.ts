import { HypervisorError } from '../errors.ts';
import { lastError, libvirt, silenceErrors } from './library.ts';
import type { Out, Pointer } from './library.ts';
import { errorOf } from './errorTable.ts';

const keepaliveIntervalSeconds = 5;
const keepaliveCount = 5;

/** Ends the present operation with the error that libvirt noted for the call that just failed. */
export function fail(call: string): never {
  const error = lastError();
  throw errorOf({
    code: error?.code ?? 0,
    domain: error?.domain ?? 0,
    message: error?.message ?? `${call} failed and libvirt does not say why`,
    errno: error?.int1 ?? 0,
  });
}

/** Checks the result of a call that returns a negative number on failure. */
export function check(call: string, result: number): number {
  return result < 0 ? fail(call) : result;
}

/** Checks the result of a call that returns NULL on failure. */
export function present<T>(call: string, result: T | null): T {
  return result === null ? fail(call) : result;
}

/** The value that a call gave through a pointer. */
export function outValue<T>(out: Out<T>): T {
  const [value] = out;
  if (value === null) throw new Error('a successful call always fills its result');
  return value;
}

/** The connection of one child process; made when it is first needed and again when it was lost. */
export class Connection {
  readonly #uri: string;
  #pointer: Pointer | undefined;
  #isPinned = false;

  constructor(uri: string) {
    this.#uri = uri;
    silenceErrors();
    check('virEventRegisterDefaultImpl', libvirt.virEventRegisterDefaultImpl());
  }

  /** @throws HypervisorError HYPERVISOR_UNREACHABLE, ACCESS_DENIED */
  get pointer(): Pointer {
    // Asks no one: the event loop notices at once when the other side closes.
    if (this.#pointer !== undefined && libvirt.virConnectIsAlive(this.#pointer) !== 1) {
      if (this.#isPinned) throw pinnedLost();
      libvirt.virConnectClose(this.#pointer);
      this.#pointer = undefined;
    }
    this.#pointer ??= this.#open();
    return this.#pointer;
  }

  /** From now on it is this connection or none: what was registered with it would be missing from another. */
  pin(): void {
    this.#isPinned = true;
  }

  /** Runs `use` with the machine's `virDomainPtr`. Rejects with MACHINE_NOT_FOUND. */
  withMachine<T>(uuid: string, use: (domain: Pointer) => T): T {
    return usingDomain(
      present('virDomainLookupByUUIDString', libvirt.virDomainLookupByUUIDString(this.pointer, uuid)),
      use,
    );
  }

  #open(): Pointer {
    const pointer = present('virConnectOpen', libvirt.virConnectOpen(this.#uri));
    check(
      'virConnectSetKeepAlive',
      libvirt.virConnectSetKeepAlive(pointer, keepaliveIntervalSeconds, keepaliveCount),
    );
    return pointer;
  }
}

function pinnedLost(): HypervisorError {
  return new HypervisorError('HYPERVISOR_UNREACHABLE', 'libvirt has closed the connection', {
    hint: 'check that libvirtd runs: systemctl status libvirtd; virsh version',
    retryable: true,
  });
}

/** Runs `use` and gives the reference to the domain back, whatever happens. */
export function usingDomain<T>(domain: Pointer, use: (domain: Pointer) => T): T {
  try {
    return use(domain);
  } finally {
    libvirt.virDomainFree(domain);
  }
}
