import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { planRead } from '../snapshot/planRead.ts';
import { planTemplate } from '../snapshot/planTemplate.ts';
import type { ReadPlan } from '../snapshot/readPlan.ts';
import type { ReadSettings } from './readFacts.ts';

/**
 * Plans a backup that reads volumes where they are, of a machine or of a template. Changes nothing.
 * @throws SnapshotError
 */
export function planReading(
  hypervisor: Hypervisor,
  jobId: string,
  machine: { readonly uuid: string; readonly name: string },
  settings: ReadSettings,
): Promise<ReadPlan> {
  const { template } = settings;
  if (template !== undefined)
    return planTemplate(hypervisor, { jobId, machine, ...settings, image: template.image });
  return planRead(hypervisor, { jobId, machineUuid: machine.uuid, ...settings });
}
