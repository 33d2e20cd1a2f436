import { BandwidthLimit } from '../common/bandwidth.ts';
import { bandwidthsFor } from '../config/policy.ts';
import type { Config } from '../config/schema.ts';
import type { AskedLimits, JobLimits } from './backup/jobLimits.ts';

/** What jobs on machines are held to: what their policies say now, also for those that run. */
export class MachineLimits {
  readonly #byName = new Map<string, JobLimits>();
  #config: Config;

  constructor(config: Config) {
    this.#config = config;
  }

  /** @param asked holds for a machine that is excluded by now */
  of(machineName: string, asked: AskedLimits): JobLimits {
    const known = this.#byName.get(machineName);
    if (known !== undefined) return known;
    const said = bandwidthsFor(this.#config, machineName);
    const limits = {
      read: new BandwidthLimit(said?.readBytesPerSecond ?? asked.readBandwidthBytesPerSecond),
      merge: new BandwidthLimit(said?.mergeBytesPerSecond ?? asked.mergeBandwidthBytesPerSecond),
    };
    this.#byName.set(machineName, limits);
    return limits;
  }

  /** Holds what runs to the limits of another configuration. @returns the names of the machines whose limits changed */
  follow(config: Config): readonly string[] {
    this.#config = config;
    const changed: string[] = [];
    for (const [name, { read, merge }] of this.#byName) {
      const said = bandwidthsFor(config, name);
      // A job that runs is no reason to let go of its limits.
      if (said === null) continue;
      const { readBytesPerSecond, mergeBytesPerSecond } = said;
      if (read.bytesPerSecond === readBytesPerSecond && merge.bytesPerSecond === mergeBytesPerSecond)
        continue;
      read.change(readBytesPerSecond);
      merge.change(mergeBytesPerSecond);
      changed.push(name);
    }
    return changed;
  }
}
