import { DomainXmlError } from '../hypervisor/domainXmlError.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { ProcessorRequirement } from '../hypervisor/processorXml.ts';
import { RestoreError } from './errors.ts';

/** libvirt's `VIR_ERR_CPU_INCOMPATIBLE` and `VIR_ERR_OPERATION_FAILED`. */
const cpuIncompatible = 91;
const operationFailed = 9;

/**
 * libvirt or QEMU refuses a machine because of its processor model. Where the model is compared after QEMU has
 * started, libvirt has no number of its own for it: then it is asked whether this host offers that processor, after
 * the failure, so that a wrong answer never keeps a machine from being resumed that can be. Only where it cannot say
 * does its text decide (docs/BEHAVIOUR.md).
 * @param requirement which processor the machine needs; `null` where nothing says so
 */
export async function isProcessorRefusal(
  hypervisor: Pick<Hypervisor, 'offersProcessor'>,
  error: unknown,
  requirement: () => Promise<ProcessorRequirement | null>,
): Promise<boolean> {
  if (!(error instanceof HypervisorError)) return false;
  if (error.libvirt?.code === cpuIncompatible) return true;
  if (error.libvirt?.code !== operationFailed) return false;
  const offered = await isOffered(hypervisor, requirement);
  return offered === null ? error.message.includes("guest CPU doesn't match") : !offered;
}

/** `null`: nobody can say. */
async function isOffered(
  hypervisor: Pick<Hypervisor, 'offersProcessor'>,
  requirement: () => Promise<ProcessorRequirement | null>,
): Promise<boolean | null> {
  try {
    const needed = await requirement();
    return needed === null ? null : await hypervisor.offersProcessor(needed);
  } catch (error) {
    // A model that this libvirt does not know, or a state whose cookie cannot be read.
    const isUnknown =
      error instanceof HypervisorError || error instanceof DomainXmlError || error instanceof RestoreError;
    if (!isUnknown) throw error;
    return null;
  }
}
