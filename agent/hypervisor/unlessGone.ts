import { HypervisorError } from './errors.ts';

/**
 * What libvirt says of one of the machines that it has listed before; `undefined` for one that has gone meanwhile, such
 * as a machine that was started to verify a backup: whoever looks through all of them goes on with the next.
 * @throws HypervisorError any but MACHINE_NOT_FOUND
 */
export async function unlessGone<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof HypervisorError && error.code === 'MACHINE_NOT_FOUND') return undefined;
    throw error;
  }
}
