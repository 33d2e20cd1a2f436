import { HypervisorError } from '../hypervisor/errors.ts';

/** libvirt's `VIR_ERR_CPU_INCOMPATIBLE` and `VIR_ERR_OPERATION_FAILED`. */
const cpuIncompatible = 91;
const operationFailed = 9;

/**
 * libvirt or QEMU refuses a machine because of its processor model. Where the model is compared after QEMU has
 * started, libvirt has no number of its own for it, so this once its text decides (docs/BEHAVIOUR.md); a text that
 * changed would only mean that the restore fails and is undone, as for any other reason.
 */
export function isProcessorRefusal(error: unknown): boolean {
  if (!(error instanceof HypervisorError)) return false;
  if (error.libvirt?.code === cpuIncompatible) return true;
  return error.libvirt?.code === operationFailed && error.message.includes("guest CPU doesn't match");
}
