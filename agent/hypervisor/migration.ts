import type { MachineStatus } from './hypervisor.ts';

/**
 * The machine runs on another host, and only its definition has stayed here (`virsh migrate` without
 * `--undefinesource`). libvirtd forgets the reason when it is started anew: from then on it is off like any other.
 */
export function isMigratedAway({ state, reason }: MachineStatus): boolean {
  return state === 'shut-off' && reason === 'migrated';
}
