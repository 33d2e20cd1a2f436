import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';

/** How the owner has a machine, as far as a `save` backup changes it. */
export interface OwnerSettings {
  readonly running: boolean;
  readonly autostart: boolean;
  /** The persistent definition says for some volume where its chain ends. */
  readonly definitionCut: boolean;
}

/** Reads how the owner has the machine now. */
export async function readOwnerSettings(hypervisor: Hypervisor, uuid: string): Promise<OwnerSettings> {
  const machine = await hypervisor.machine(uuid);
  const persistent = DomainXml.parse(await hypervisor.definition(uuid, 'persistent'));
  return {
    running: machine.status.state !== 'paused',
    autostart: machine.autostart,
    definitionCut: persistent.volumes.some((volume) => volume.backingChain !== undefined),
  };
}

/**
 * Keeps a machine from being started wrongly while its chain is not what its owner knows: no autostart, and no
 * `<backingStore>` in the persistent definition, which a cold start would obey (trap 1). Without those elements
 * libvirt reads the chain from the headers, which is always right, so they are not put back.
 */
export async function guardMachine(
  hypervisor: Hypervisor,
  uuid: string,
  before: OwnerSettings,
): Promise<void> {
  const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === uuid);
  if (machine?.persistent !== true) return;
  if (machine.autostart) await hypervisor.setAutostart(uuid, false);
  if (!before.definitionCut) return;
  const definition = DomainXml.parse(await hypervisor.definition(uuid, 'persistent-secure'));
  definition.removeBackingStores();
  await hypervisor.define(definition.toString());
}

/** Gives the machine its autostart back. */
export async function unguardMachine(
  hypervisor: Hypervisor,
  uuid: string,
  before: Pick<OwnerSettings, 'autostart'>,
): Promise<void> {
  if (!before.autostart) return;
  const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === uuid);
  // Undefined by its owner in the meantime: there is nothing to give back.
  if (machine !== undefined && !machine.autostart) await hypervisor.setAutostart(uuid, true);
}
