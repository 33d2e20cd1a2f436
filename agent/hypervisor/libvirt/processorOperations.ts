import koffi from 'koffi';
import type { ProcessorRequirement } from '../processorXml.ts';
import { check } from './connection.ts';
import type { Connection } from './connection.ts';
import type { Pointer } from './library.ts';

const library = koffi.load('libvirt.so.0');
const compare: (
  connection: Pointer,
  emulator: null,
  arch: string,
  machine: null,
  virtType: string,
  cpu: string,
  flags: number,
) => number = library.func(
  'int virConnectCompareHypervisorCPU(void *conn, str emulator, str arch, str machine, str virttype, str cpu, uint flags)',
);

/** `VIR_CPU_COMPARE_INCOMPATIBLE`; identical is 1, a superset 2, an error -1. */
const incompatible = 0;

/** What the host's processor and QEMU can do. */
export function processorOperations(connection: Connection) {
  return {
    offersProcessor({ arch, virtType, cpu }: ProcessorRequirement): boolean {
      const result = compare(connection.pointer, null, arch, null, virtType, cpu, 0);
      return check('virConnectCompareHypervisorCPU', result) !== incompatible;
    },
  };
}
