import { policyFor } from '../../config/policy.ts';
import type { Agent } from '../agent.ts';
import type { MachineSummary } from '../hypervisor/hypervisor.ts';
import type { ScheduleReports } from '../service/report.ts';
import type { LastBackup, MachineStatus } from './hostStatus.ts';
import type { BackupDigest, BackupHistory } from './jobDigests.ts';
import { laterOf, type StorageLook } from './storageLook.ts';

/** A machine as libvirt has listed it, or as the journal remembers it: then without a state. */
export type KnownMachine = Pick<MachineSummary, 'uuid' | 'name'> & {
  readonly status: MachineSummary['status'] | null;
};

/** What is known of the backups of all machines. */
export interface KnownBackups {
  readonly histories: ReadonlyMap<string, BackupHistory>;
  readonly storages: readonly StorageLook[];
}

/** How machines stand to their backups, by name. */
export function machineStatuses(
  machines: readonly KnownMachine[],
  known: KnownBackups,
  about: { readonly agent: Agent; readonly schedules: ScheduleReports; readonly nowMs: number },
): readonly MachineStatus[] {
  return machines
    .toSorted((one, other) => one.name.localeCompare(other.name))
    .map((machine) => statusOf(machine, known, about));
}

function statusOf(
  { uuid, name, status }: KnownMachine,
  known: KnownBackups,
  { agent, schedules, nowMs }: Parameters<typeof machineStatuses>[2],
): MachineStatus {
  const { config, configPath, storages } = agent.parts;
  const history = known.histories.get(uuid);
  const lastBackups = lastBackupsOf(uuid, history?.succeeded ?? [], known.storages, storages);
  // Without a storage there are no policies, which commands and `doctor` tell.
  const hasPolicy = storages.size > 0;
  const lastSuccessMs = lastBackups[0]?.atMs ?? null;
  return {
    uuid,
    name,
    state: status?.state ?? null,
    excluded: hasPolicy && policyFor(config, name, configPath).kind === 'excluded',
    lastBackups,
    lastRun: history?.last ?? null,
    lastSuccess: history?.succeeded[0] ?? null,
    schedule: hasPolicy ? schedules.of({ uuid, name }, nowMs, lastSuccessMs) : null,
  };
}

/**
 * The newest good backup in each storage, newest first. What a storage says counts: what is gone from it is no backup
 * any more. The journal tells what came into it since, and of storages that have never answered; what went into one that
 * is configured no more is out of reach, and none.
 */
export function lastBackupsOf(
  uuid: string,
  succeeded: readonly BackupDigest[],
  storages: readonly StorageLook[],
  configured: ReadonlyMap<string, unknown>,
): readonly LastBackup[] {
  const last = new Map<string, LastBackup>();
  for (const { name: storage, machines } of storages) {
    const newest = machines.get(uuid)?.newest;
    if (newest === null || newest === undefined) continue;
    last.set(storage, { storage, atMs: newest.atMs, referencedBytes: newest.referencedBytes });
  }
  for (const { pointInTimeMs, endedAtMs, storages: names } of succeeded) {
    if (pointInTimeMs === null) continue;
    for (const storage of names) {
      if (!configured.has(storage)) continue;
      const listedAtMs = storages.find(({ name }) => name === storage)?.listedAtMs ?? null;
      if (listedAtMs !== null && endedAtMs < listedAtMs) continue;
      const seen = last.get(storage);
      if (seen !== undefined && laterOf(seen.atMs, pointInTimeMs) === seen.atMs) continue;
      last.set(storage, { storage, atMs: pointInTimeMs, referencedBytes: null });
    }
  }
  return [...last.values()].toSorted((one, other) => other.atMs - one.atMs);
}
