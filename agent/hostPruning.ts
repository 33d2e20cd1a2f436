import type { Config } from '../config/schema.ts';
import type { HostBackupEntry } from '../storage/storage.ts';
import { hostTimeZone } from './retain/periods.ts';
import { decideRetention } from './retain/retention.ts';

/** Why the backup of a host stays, or that no rule keeps it. */
export interface HostDecision {
  readonly backup: {
    readonly id: string;
    readonly pointInTime: string;
    readonly entry: HostBackupEntry;
  };
  readonly keep: boolean;
  readonly reasons: readonly string[];
}

/** Decides about the backups of hosts, of each host in each storage alone, by `hostBackups.keep`. */
export function decideHosts(
  config: Pick<Config, 'hostBackups'>,
  entries: readonly HostBackupEntry[],
  now = new Date(),
): readonly HostDecision[] {
  const { keep } = config.hostBackups;
  const groups = Map.groupBy(entries, ({ storage, host }) => `${storage}\n${host}`);
  return [...groups.values()].flatMap((group) => {
    const candidates = group.map((entry) => {
      const { pointInTime, problem, manifest, directory, lockedUntil } = entry;
      const id = manifest?.id ?? directory;
      return { id, pointInTime, good: problem === null, protected: false, lockedUntil, entry };
    });
    return decideRetention(candidates, { keep, timeZone: hostTimeZone(), now });
  });
}
