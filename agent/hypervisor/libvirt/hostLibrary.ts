import koffi from 'koffi';
import type { HostDefinition } from '../hypervisor.ts';
import type { Out, Pointer } from './library.ts';

/** What libvirt offers for one kind of thing that it has definitions of, beside machines. */
export interface HostLibrary {
  readonly kind: HostDefinition['kind'];
  readonly list: (connection: Pointer, list: Out<Pointer>, flags: number) => number;
  readonly uuid: (object: Pointer, buffer: Buffer) => number;
  readonly definition: (object: Pointer, flags: number) => string | null;
  readonly free: (object: Pointer) => number;
  /** `null` for secrets, which have none. */
  readonly name: ((object: Pointer) => string | null) | null;
  /** `null` where nothing is started. */
  readonly autostart: ((object: Pointer, autostart: Out<number>) => number) | null;
  /** Asks for what the next start uses, where that can differ. */
  readonly flags: number;
}

const library = koffi.load('libvirt.so.0');
const inactive = 1 << 0;

/** The functions have the same shape for every kind. Of a secret only the definition is ever asked for. */
export const hostLibraries: readonly HostLibrary[] = [
  libraryOf('network', 'Network', 'Networks', inactive),
  libraryOf('pool', 'StoragePool', 'StoragePools', inactive),
  libraryOf('nwfilter', 'NWFilter', 'NWFilters', 0),
  libraryOf('secret', 'Secret', 'Secrets', 0),
];

/** Storage pools and their volumes. */
export const poolLibrary: {
  readonly find: (connection: Pointer, name: string) => Pointer | null;
  readonly free: (pool: Pointer) => number;
  readonly findVolume: (pool: Pointer, name: string) => Pointer | null;
  readonly volumePath: (volume: Pointer) => string | null;
  readonly freeVolume: (volume: Pointer) => number;
} = {
  find: library.func('void *virStoragePoolLookupByName(void *conn, str name)'),
  free: library.func('int virStoragePoolFree(void *pool)'),
  findVolume: library.func('void *virStorageVolLookupByName(void *pool, str name)'),
  volumePath: library.func('str! virStorageVolGetPath(void *volume)'),
  freeVolume: library.func('int virStorageVolFree(void *volume)'),
};

function libraryOf(kind: HostDefinition['kind'], type: string, plural: string, flags: number): HostLibrary {
  return {
    kind,
    list: library.func(`int virConnectListAll${plural}(void *conn, _Out_ void **list, uint flags)`),
    uuid: library.func(`int vir${type}GetUUIDString(void *object, void *buffer)`),
    definition: library.func(`str! vir${type}GetXMLDesc(void *object, uint flags)`),
    free: library.func(`int vir${type}Free(void *object)`),
    name: kind === 'secret' ? null : library.func(`str vir${type}GetName(void *object)`),
    autostart:
      flags === 0 ? null : library.func(`int vir${type}GetAutostart(void *object, _Out_ int *autostart)`),
    flags,
  };
}
