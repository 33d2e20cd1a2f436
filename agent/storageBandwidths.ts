import { Bandwidth } from '../common/bandwidth.ts';
import type { Config } from '../config/schema.ts';

/** What may go to and from each storage, of all jobs of this process together. */
export class StorageBandwidths {
  readonly #byName = new Map<string, Bandwidth>();

  constructor(config: Config) {
    this.follow(config);
  }

  of(name: string): Bandwidth {
    const known = this.#byName.get(name);
    if (known !== undefined) return known;
    const unlimited = new Bandwidth();
    this.#byName.set(name, unlimited);
    return unlimited;
  }

  /** Holds what is under way to the limits of another configuration. Returns the names whose limit is another. */
  follow({ storages }: Config): readonly string[] {
    const changed: string[] = [];
    for (const [name, settings] of Object.entries(storages)) {
      const limit = settings.bandwidthBytesPerSecond;
      if (this.of(name).bytesPerSecond === limit) continue;
      this.of(name).change(limit);
      changed.push(name);
    }
    return changed;
  }
}
