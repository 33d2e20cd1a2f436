import { constants } from 'node:os';

import { HypervisorError } from '../errors.ts';
import type { DefinitionKind, HostInfo, MachineStatus, MachineSummary } from '../hypervisor.ts';
import { check, fail, outValue, present, usingDomain } from './connection.ts';
import type { Connection } from './connection.ts';
import { lastError, libvirt, takeList } from './library.ts';
import type { Out, Pointer } from './library.ts';
import { statusOf } from './reasons.ts';

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const uuidStringBytes = 37;

const xmlFlags: Readonly<Record<DefinitionKind, number>> = {
  live: 0,
  persistent: 1 << 1, // INACTIVE
  'persistent-secure': (1 << 0) | (1 << 1), // SECURE | INACTIVE
  migratable: (1 << 0) | (1 << 3), // SECURE | MIGRATABLE
};
const undefineKeepNvram = 1 << 3;
const undefineKeepTpm = 1 << 6;
const startPaused = 1 << 0;
const destroyGraceful = 1 << 0;

/** Everything about machines that needs no file and no volume. */
export function machineOperations(connection: Connection) {
  return {
    /** Makes the connection, if it is not there, and nothing else. */
    connect(): void {
      check('virConnectIsAlive', libvirt.virConnectIsAlive(connection.pointer));
    },

    hostInfo(): HostInfo {
      const { pointer } = connection;
      const version = (call: 'virConnectGetLibVersion' | 'virConnectGetVersion'): string => {
        const out: Out<number> = [null];
        check(call, libvirt[call](pointer, out));
        return versionText(outValue(out));
      };
      return {
        hostName: present('virConnectGetHostname', libvirt.virConnectGetHostname(pointer)),
        libvirtVersion: version('virConnectGetLibVersion'),
        qemuVersion: version('virConnectGetVersion'),
        uri: present('virConnectGetURI', libvirt.virConnectGetURI(pointer)),
      };
    },

    capabilities(): string {
      const xml = libvirt.virConnectGetCapabilities(connection.pointer);
      return present('virConnectGetCapabilities', xml);
    },

    machines(): MachineSummary[] {
      const list: Out<Pointer> = [null];
      const count = libvirt.virConnectListAllDomains(connection.pointer, list, 0);
      const domains = takeList(list, check('virConnectListAllDomains', count));
      try {
        return domains.map(summaryUnlessGone).filter((found) => found !== undefined);
      } finally {
        for (const domain of domains) libvirt.virDomainFree(domain);
      }
    },

    findMachine(nameOrUuid: string): MachineSummary {
      // A UUID is also a valid name: the machine that has it as its UUID comes first.
      if (uuidPattern.test(nameOrUuid)) {
        try {
          return connection.withMachine(nameOrUuid, summary);
        } catch (error) {
          if (!isNotFound(error)) throw error;
        }
      }
      const domain = libvirt.virDomainLookupByName(connection.pointer, nameOrUuid);
      return usingDomain(present('virDomainLookupByName', domain), summary);
    },

    machine(uuid: string): MachineSummary {
      return connection.withMachine(uuid, summary);
    },

    status(uuid: string): MachineStatus {
      return connection.withMachine(uuid, status);
    },

    definition(uuid: string, kind: DefinitionKind): string {
      return connection.withMachine(uuid, (domain) =>
        present('virDomainGetXMLDesc', libvirt.virDomainGetXMLDesc(domain, xmlFlags[kind])),
      );
    },

    setAutostart(uuid: string, autostart: boolean): void {
      connection.withMachine(uuid, (domain) =>
        check('virDomainSetAutostart', libvirt.virDomainSetAutostart(domain, autostart ? 1 : 0)),
      );
    },

    define(definition: string): void {
      const domain = libvirt.virDomainDefineXMLFlags(connection.pointer, definition, 0);
      libvirt.virDomainFree(present('virDomainDefineXMLFlags', domain));
    },

    undefine(uuid: string): void {
      connection.withMachine(uuid, (domain) =>
        check(
          'virDomainUndefineFlags',
          libvirt.virDomainUndefineFlags(domain, undefineKeepNvram | undefineKeepTpm),
        ),
      );
    },

    start(uuid: string, paused: boolean): void {
      connection.withMachine(uuid, (domain) =>
        check('virDomainCreateWithFlags', libvirt.virDomainCreateWithFlags(domain, paused ? startPaused : 0)),
      );
    },

    suspend(uuid: string): void {
      connection.withMachine(uuid, (domain) => check('virDomainSuspend', libvirt.virDomainSuspend(domain)));
    },

    resume(uuid: string): void {
      connection.withMachine(uuid, (domain) => check('virDomainResume', libvirt.virDomainResume(domain)));
    },

    /** SIGTERM, so that QEMU closes its images; SIGKILL when it has not ended within libvirt's 15 s. */
    powerOff(uuid: string): void {
      connection.withMachine(uuid, (domain) => {
        if (libvirt.virDomainDestroyFlags(domain, destroyGraceful) === 0) return;
        if (lastError()?.int1 !== constants.errno.EBUSY) fail('virDomainDestroyFlags');
        if (status(domain).state === 'shut-off') return;
        check('virDomainDestroyFlags', libvirt.virDomainDestroyFlags(domain, 0));
      });
    },
  };
}

function isNotFound(error: unknown): boolean {
  return error instanceof HypervisorError && error.code === 'MACHINE_NOT_FOUND';
}

function summaryUnlessGone(domain: Pointer): MachineSummary | undefined {
  try {
    return summary(domain);
  } catch (error) {
    // Undefined since the list was made.
    if (isNotFound(error)) return undefined;
    throw error;
  }
}

function summary(domain: Pointer): MachineSummary {
  const uuid = uuidOf(domain);
  const autostart: Out<number> = [null];
  check('virDomainGetAutostart', libvirt.virDomainGetAutostart(domain, autostart));
  return {
    uuid,
    name: present('virDomainGetName', libvirt.virDomainGetName(domain)),
    status: status(domain),
    persistent: check('virDomainIsPersistent', libvirt.virDomainIsPersistent(domain)) === 1,
    autostart: outValue(autostart) === 1,
    hasManagedSave:
      check('virDomainHasManagedSaveImage', libvirt.virDomainHasManagedSaveImage(domain, 0)) === 1,
  };
}

function status(domain: Pointer): MachineStatus {
  const state: Out<number> = [null];
  const reason: Out<number> = [null];
  check('virDomainGetState', libvirt.virDomainGetState(domain, state, reason, 0));
  return statusOf(outValue(state), outValue(reason));
}

/** UUID of a `virDomainPtr`, in lower case with dashes. */
export function uuidOf(domain: Pointer): string {
  const buffer = Buffer.alloc(uuidStringBytes);
  check('virDomainGetUUIDString', libvirt.virDomainGetUUIDString(domain, buffer));
  return buffer.toString('latin1', 0, uuidStringBytes - 1);
}

/** libvirt packs versions as major × 1 000 000 + minor × 1 000 + release. */
function versionText(version: number): string {
  return `${Math.floor(version / 1_000_000)}.${Math.floor(version / 1000) % 1000}.${version % 1000}`;
}
