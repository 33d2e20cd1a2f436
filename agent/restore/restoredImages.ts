import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { RestoreError } from './errors.ts';
import type { RestorePlan } from './plan.ts';

/**
 * The machine must stand on the restored images and on nothing else, before it runs; in an instant restore on the
 * served backup below each, unless that has been pulled.
 * @throws RestoreError CANNOT_START_MACHINE
 */
export async function requireRestoredImages(
  hypervisor: Hypervisor,
  plan: RestorePlan,
  pulls: 'none' | 'some are pulled' = 'none',
): Promise<void> {
  const live = DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'live'));
  for (const volume of plan.volumes) {
    const found = live.volume(volume.target);
    const chain = [found.path, ...(found.backingChain ?? []).map((image) => image.path ?? image.nbdUrl)];
    const wanted = [volume.image, ...(volume.served === null ? [] : [volume.served.url])];
    if (found.backingChain !== undefined && String(chain) === String(wanted)) continue;
    if (pulls !== 'none' && found.backingChain?.length === 0 && found.path === volume.image) continue;
    throw new RestoreError(
      'CANNOT_START_MACHINE',
      `${volume.target} stands on ${chain.join(' → ')} instead of ${wanted.join(' → ')}`,
    );
  }
}
