import type { BandwidthLimit } from '../../common/bandwidth.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';

/** Holds the block job of one volume to a limit that may be changed while it runs. */
export class BlockJobPace {
  readonly #hypervisor: Hypervisor;
  readonly #volume: { readonly uuid: string; readonly target: string };
  readonly #limit: BandwidthLimit;
  /** What QEMU was told last; of a job that somebody else has begun that is not known. */
  #toldBytesPerSecond: number | undefined;

  constructor(
    hypervisor: Hypervisor,
    volume: { readonly uuid: string; readonly target: string },
    limit: BandwidthLimit,
  ) {
    this.#hypervisor = hypervisor;
    this.#volume = volume;
    this.#limit = limit;
  }

  /** The limit in bytes per second, for a job that is begun with it; 0 is without limit. */
  atBegin(): number {
    this.#toldBytesPerSecond = this.#limit.bytesPerSecond;
    return this.#toldBytesPerSecond;
  }

  /** Tells QEMU the limit where it is another one by now. @throws HypervisorError unless the job has ended meanwhile */
  async keep(): Promise<void> {
    const { bytesPerSecond } = this.#limit;
    if (bytesPerSecond === this.#toldBytesPerSecond) return;
    const { uuid, target } = this.#volume;
    try {
      await this.#hypervisor.setBlockJobBandwidth(uuid, target, bytesPerSecond);
      this.#toldBytesPerSecond = bytesPerSecond;
    } catch (error) {
      if (!(error instanceof HypervisorError)) throw error;
      if ((await this.#hypervisor.blockJob(uuid, target)) !== null) throw error;
    }
  }
}
