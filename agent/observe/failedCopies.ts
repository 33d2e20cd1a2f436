import type { Agent } from '../agent.ts';
import type { JobRow } from '../jobs/job.ts';
import type { Journal } from '../jobs/journal.ts';
import type { FailedCopy } from './hostStatus.ts';
import type { KnownMachine } from './machineStatuses.ts';
import type { StorageLook } from './storageLook.ts';

/**
 * The copies that policies ask for and that failed the last time, from the journal. One that somebody has made since,
 * by a command, has failed no more: copies are made oldest first, so where the newest backup is there they all are.
 */
export function failedCopies(
  agent: Agent,
  machines: readonly KnownMachine[],
  storages: readonly StorageLook[],
): readonly FailedCopy[] {
  const { journal, storages: configured } = agent.parts;
  // Without a storage there are no policies.
  if (configured.size === 0) return [];
  const newestMs = (storage: string, uuid: string): number | null =>
    storages.find(({ name }) => name === storage)?.machines.get(uuid)?.newest?.atMs ?? null;
  const failed = newestFailed(journal);
  if (failed.size === 0) return [];
  return machines.flatMap(({ uuid, name }) =>
    agent.replications.rulesFor(name).flatMap(({ from, to }): readonly FailedCopy[] => {
      const last = failed.get(agent.replications.placeOf({ uuid, name }, to));
      if (last === undefined || last.holdsMachine) return [];
      const [wantedMs, presentMs] = [newestMs(from, uuid), newestMs(to, uuid)];
      if (wantedMs !== null && presentMs !== null && presentMs >= wantedMs) return [];
      return [{ machine: { uuid, name }, from, to, jobId: last.id, error: last.error }];
    }),
  );
}

/** The copies whose newest job has failed, by machine and place; no record of another one is read. */
function newestFailed(journal: Journal): ReadonlyMap<string, JobRow> {
  const kind = 'replicate';
  const ended = ['finished', 'failed', 'cancelled'] as const;
  const newest = new Set(journal.newestOfMachines({ kind, states: ended, perMachine: 1 }));
  const failed = journal.newestOfMachines({ kind, states: ['failed'], perMachine: 1 });
  const rows = failed.filter((id) => newest.has(id)).map((id) => journal.get(id));
  return new Map(rows.map((row) => [row.machineUuid, row]));
}
