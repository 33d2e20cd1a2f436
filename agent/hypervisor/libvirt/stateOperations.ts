import { closeSync, existsSync, lstatSync, openSync, rmSync, statfsSync } from 'node:fs';
import { dirname, isAbsolute } from 'node:path';

import { HypervisorError } from '../errors.ts';
import type { MachineJob } from '../hypervisor.ts';
import { check, present } from './connection.ts';
import type { Connection } from './connection.ts';
import { libvirt } from './library.ts';
import type { RawJobInfo } from './library.ts';

const restorePaused = 1 << 2;
const xmlSecure = 1 << 0;
/** `VIR_DOMAIN_SNAPSHOT_CREATE_`: NO_METADATA | REUSE_EXT | ATOMIC | LIVE. */
const snapshotFlags = (1 << 2) | (1 << 5) | (1 << 7) | (1 << 8);
const jobKinds: readonly MachineJob['kind'][] = ['none', 'bounded', 'unbounded'];

/** Memory states and the jobs that write them. */
export function stateOperations(connection: Connection) {
  return {
    /**
     * Blocks until the state is written and QEMU has stopped. libvirt truncates an existing file, which may
     * be the only copy of another state: refused here.
     */
    save(uuid: string, file: string, definition: string): void {
      refuseUnlessFresh(file);
      connection.withMachine(uuid, (domain) => {
        // Asked before: a failed call's error is kept only until the next call.
        const memoryBytes = Number(libvirt.virDomainGetMaxMemory(domain)) * 1024;
        try {
          check('virDomainSaveFlags', libvirt.virDomainSaveFlags(domain, file, definition, 0));
        } catch (error) {
          throw isGeneral(error) ? (spaceError(error, dirname(file), memoryBytes) ?? error) : error;
        }
      });
    },

    restoreState(file: string, definition: string | null, paused: boolean): void {
      check(
        'virDomainRestoreFlags',
        libvirt.virDomainRestoreFlags(connection.pointer, file, definition, paused ? restorePaused : 0),
      );
    },

    stateDefinition(file: string): string {
      return present(
        'virDomainSaveImageGetXMLDesc',
        libvirt.virDomainSaveImageGetXMLDesc(connection.pointer, file, xmlSecure),
      );
    },

    setStateDefinition(file: string, definition: string): void {
      check(
        'virDomainSaveImageDefineXML',
        libvirt.virDomainSaveImageDefineXML(connection.pointer, file, definition, 0),
      );
    },

    /** Blocks until memory is written, the overlays are in use and the vCPUs run again. */
    snapshotLive(uuid: string, memoryFile: string, snapshotXml: string): void {
      refuseUnlessFresh(memoryFile);
      connection.withMachine(uuid, (domain) => {
        const memoryBytes = Number(libvirt.virDomainGetMaxMemory(domain)) * 1024;
        // libvirt lets an existing file keep its mode, and would make a new one by its umask.
        closeSync(openSync(memoryFile, 'wx', 0o600));
        try {
          const snapshot = libvirt.virDomainSnapshotCreateXML(domain, snapshotXml, snapshotFlags);
          libvirt.virDomainSnapshotFree(present('virDomainSnapshotCreateXML', snapshot));
        } catch (error) {
          // libvirt removes only what it has made itself. Unreachable, it may still be writing.
          if (!(error instanceof HypervisorError && error.code === 'HYPERVISOR_UNREACHABLE'))
            rmSync(memoryFile, { force: true });
          throw isGeneral(error) ? (spaceError(error, dirname(memoryFile), memoryBytes) ?? error) : error;
        }
      });
    },

    setMaxDowntime(uuid: string, downtimeMs: number): void {
      connection.withMachine(uuid, (domain) =>
        check(
          'virDomainMigrateSetMaxDowntime',
          libvirt.virDomainMigrateSetMaxDowntime(domain, downtimeMs, 0),
        ),
      );
    },

    job(uuid: string): MachineJob {
      return connection.withMachine(uuid, (domain) => {
        const info: Partial<RawJobInfo> = {};
        check('virDomainGetJobInfo', libvirt.virDomainGetJobInfo(domain, info));
        // Above `unbounded` are jobs that have ended.
        return {
          kind: jobKinds[info.type ?? 0] ?? 'none',
          processedBytes: Number(info.dataProcessed),
          totalBytes: Number(info.dataTotal),
        };
      });
    },

    abortJob(uuid: string): void {
      connection.withMachine(uuid, (domain) => check('virDomainAbortJob', libvirt.virDomainAbortJob(domain)));
    },
  };
}

function refuseUnlessFresh(file: string): void {
  if (!isAbsolute(file)) {
    throw new HypervisorError('OPERATION_FAILED', `the path of a memory state must be absolute: ${file}`);
  }
  if (lstatSync(file, { throwIfNoEntry: false }) !== undefined) {
    throw new HypervisorError('OPERATION_FAILED', `${file} exists and is not overwritten`, {
      hint: 'name a path that does not exist',
    });
  }
}

function isGeneral(error: unknown): error is HypervisorError {
  return error instanceof HypervisorError && error.code === 'OPERATION_FAILED';
}

/**
 * libvirt reports a full file system under a save as a general failure (9) that only its text explains. It
 * has removed the file by then; what is free now and the size of the memory tell whether it could fit.
 */
function spaceError(
  error: HypervisorError,
  directory: string,
  memoryBytes: number,
): HypervisorError | undefined {
  if (!existsSync(directory)) return undefined;
  const { bavail, bsize } = statfsSync(directory);
  const freeBytes = bavail * bsize;
  if (freeBytes >= memoryBytes) return undefined;
  return new HypervisorError('NO_SPACE', error.message, {
    cause: error,
    hint: `${directory} has ${freeBytes} bytes free, the memory is ${memoryBytes} bytes: free space there or name another directory`,
    libvirt: error.libvirt,
  });
}
