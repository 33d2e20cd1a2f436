import type { Agent } from '../agent/agent.ts';
import { JobDigests } from '../agent/observe/jobDigests.ts';
import { type KnownBackups, lastBackupsOf } from '../agent/observe/machineStatuses.ts';
import { lookAtStorage } from '../agent/observe/storageLook.ts';
import type { Cli } from './cli.ts';
import { timeOf } from './jobView.ts';

/** The newest good backup of a machine. */
export interface LastBackup {
  /** null: only the journal knows it, because its storage does not answer. */
  readonly id: string | null;
  readonly pointInTime: string;
  readonly storage: string;
}

/** A storage that does not answer must not hide the machines: the journal says what is in there, as in `status`. */
export async function lookAtBackups(
  { terminal }: Pick<Cli, 'terminal'>,
  { parts }: Agent,
): Promise<KnownBackups> {
  const storages = await Promise.all(
    [...parts.storages.values()].map((storage) => lookAtStorage(storage, undefined, Date.now)),
  );
  for (const { name, problem } of storages)
    if (problem !== null) terminal.warning(`storage ${name}: ${problem.message}`);
  return { histories: new JobDigests(parts.journal).histories(), storages };
}

/** The newest good backup, by the same rule as in `status`. */
export function lastBackupOf(
  { parts }: Agent,
  uuid: string,
  { histories, storages }: KnownBackups,
): LastBackup | null {
  const succeeded = histories.get(uuid)?.succeeded ?? [];
  const [last] = lastBackupsOf(uuid, succeeded, storages, parts.storages);
  if (last === undefined) return null;
  const { storage, atMs } = last;
  const newest = storages.find(({ name }) => name === storage)?.machines.get(uuid)?.newest;
  const id = newest?.atMs === atMs ? newest.backupId : null;
  return { id, pointInTime: timeOf(atMs), storage };
}
