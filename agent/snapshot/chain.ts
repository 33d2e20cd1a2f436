import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import { expectedChain, type PlannedVolume } from './plan.ts';

/** How a volume of an active machine stands on its images. */
export type ChainState =
  /** image → frozen image → what was below: as it must be before the merge. */
  | 'expected'
  /** The frozen image is missing from the chain that QEMU uses: merged, or cut (trap 1). */
  | 'without-frozen'
  | 'unknown';

/** Compares the chain in a live definition with the one that the plan asks for. */
export function chainState(live: DomainXml, volume: PlannedVolume): ChainState {
  const found = live.volumes.find((candidate) => candidate.target === volume.target);
  if (found?.path !== volume.image || found.backingChain === undefined) return 'unknown';
  const below = found.backingChain.map((image) => image.path ?? image.nbdUrl);
  const expected = expectedChain(volume).slice(1);
  if (below.length === expected.length && below.every((path, index) => path === expected[index]))
    return 'expected';
  return below.includes(volume.frozen) ? 'unknown' : 'without-frozen';
}

/**
 * Checks every volume of a machine that was restored and has not run yet.
 * @throws SnapshotError WRONG_BLOCK_GRAPH: the machine must be stopped without having run
 */
export async function requireExpectedChains(
  hypervisor: Hypervisor,
  uuid: string,
  volumes: readonly PlannedVolume[],
): Promise<void> {
  const live = DomainXml.parse(await hypervisor.definition(uuid, 'live'));
  for (const volume of volumes) {
    const state = chainState(live, volume);
    if (state === 'expected') continue;
    throw new SnapshotError(
      'WRONG_BLOCK_GRAPH',
      `${volume.target} came back ${state === 'without-frozen' ? 'without its data below it' : 'on an unexpected chain'}; it was not allowed to run`,
      {
        hint: `virsh dumpxml ${live.name} shows <backingStore> of the disk; the data is in ${volume.frozen}`,
      },
    );
  }
}
