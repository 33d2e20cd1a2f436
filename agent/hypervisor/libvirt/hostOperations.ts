import { HypervisorError } from '../errors.ts';
import type { HostDefinition } from '../hypervisor.ts';
import { check, outValue, present } from './connection.ts';
import type { Connection } from './connection.ts';
import { type HostLibrary, hostLibraries, poolLibrary } from './hostLibrary.ts';
import { type Out, type Pointer, takeList } from './library.ts';

const uuidStringBytes = 37;

/** What a host has beside its machines. */
export function hostOperations(connection: Connection) {
  return {
    /** Of a libvirt without a driver for one kind there are none of it. */
    hostDefinitions(): HostDefinition[] {
      const { pointer } = connection;
      return hostLibraries.flatMap((one) => {
        try {
          return definitionsOf(pointer, one);
        } catch (error) {
          if (error instanceof HypervisorError && error.code === 'OPERATION_UNSUPPORTED') return [];
          throw error;
        }
      });
    },

    volumePath(poolName: string, volumeName: string): string {
      const pool = present('virStoragePoolLookupByName', poolLibrary.find(connection.pointer, poolName));
      try {
        const volume = present('virStorageVolLookupByName', poolLibrary.findVolume(pool, volumeName));
        try {
          return present('virStorageVolGetPath', poolLibrary.volumePath(volume));
        } finally {
          poolLibrary.freeVolume(volume);
        }
      } finally {
        poolLibrary.free(pool);
      }
    },
  };
}

function definitionsOf(connection: Pointer, one: HostLibrary): HostDefinition[] {
  const list: Out<Pointer> = [null];
  const count = check(`list of ${one.kind}s`, one.list(connection, list, 0));
  const objects = takeList(list, count);
  try {
    return objects.map((object) => describe(object, one));
  } finally {
    for (const object of objects) one.free(object);
  }
}

function describe(
  object: Pointer,
  { kind, name, uuid, definition, autostart, flags }: HostLibrary,
): HostDefinition {
  const buffer = Buffer.alloc(uuidStringBytes);
  check(`UUID of a ${kind}`, uuid(object, buffer));
  const uuidText = buffer.toString('latin1', 0, uuidStringBytes - 1);
  const starts: Out<number> = [null];
  if (autostart !== null) check(`autostart of a ${kind}`, autostart(object, starts));
  return {
    kind,
    name: name === null ? uuidText : present(`name of a ${kind}`, name(object)),
    uuid: uuidText,
    definition: present(`definition of a ${kind}`, definition(object, flags)),
    autostart: autostart === null ? null : outValue(starts) === 1,
  };
}
