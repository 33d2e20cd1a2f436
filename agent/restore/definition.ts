import { messageOf } from '../../common/errors.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { RestoreError } from './errors.ts';
import type { RestorePlan } from './plan.ts';

/**
 * The definition that the restored machine gets, made from one of T1 (the stored one, or the one inside the
 * memory state).
 * @throws RestoreError DEFINITION_UNUSABLE
 */
export function restoredDefinition(plan: RestorePlan, original: string): string {
  const definition = DomainXml.parse(original);
  definition.removeBackingStores();
  try {
    if (plan.kind === 'new-machine') {
      definition.prepareForNewMachine({ ...plan.machine, macs: plan.macs });
      if (plan.linksDown) for (const mac of plan.macs) definition.setLinkState(mac, 'down');
      if (plan.nvram !== null) definition.setNvram(plan.nvram.path);
    }
    for (const [index, { source }] of definition.interfaces.entries()) {
      const place = plan.networks.find(({ from }) => from === source)?.to;
      if (place !== undefined) definition.connect(index, place);
    }
    for (const volume of plan.volumes) {
      if (!volume.keepsPool && definition.volume(volume.target).path !== volume.image)
        definition.setVolumePath(volume.target, volume.image);
      // Without its server the guest waits instead of seeing errors of its disk.
      if (volume.served !== null) definition.setErrorPolicies(volume.target, { write: 'stop', read: 'stop' });
    }
  } catch (error) {
    throw new RestoreError(
      'DEFINITION_UNUSABLE',
      `the stored definition does not fit the backup: ${messageOf(error)}`,
      {
        cause: error,
        hint: 'restore the files alone with --to DIR, and define the machine by hand',
      },
    );
  }
  return definition.toString();
}
