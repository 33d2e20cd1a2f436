import { lockedNow } from '../storage/backupLock.ts';
import type { BackupEntry } from '../storage/storage.ts';
import type { Verification } from '../storage/verification.ts';
import type { Agent } from './agent.ts';
import type { JobRow } from './jobs/job.ts';

/** One copy of a backup in one storage. */
export interface BackupCopy {
  readonly name: string;
  readonly directory: string;
  /** It stands on the file system that holds the machine's images. */
  readonly local: boolean;
  readonly state: BackupEntry['state'];
  readonly problem: string | null;
  readonly protected: boolean;
  readonly protectedReason: string | null;
  /** Nobody can delete it before, RFC 3339; `null`: it is not locked, or not any more. */
  readonly lockedUntil: string | null;
  /** What came of starting it in isolation, the last time. */
  readonly verified: Verification | null;
}

/** A backup with all its copies. */
export interface StoredBackup {
  /** The first copy that can be restored, otherwise the first. */
  readonly entry: BackupEntry;
  readonly entries: readonly BackupEntry[];
  readonly state: BackupEntry['state'];
  readonly storages: readonly BackupCopy[];
  /** Every copy goes with the machine's own file system. */
  readonly localOnly: boolean;
}

/** Brings the copies of each backup together, in the order of the entries. What has no id stands alone. */
export async function gatherBackups(
  agent: Agent,
  entries: readonly BackupEntry[],
): Promise<readonly StoredBackup[]> {
  return Promise.all(groupsOf(entries).map((group) => backupOf(agent, group)));
}

/** Entries of the same backup side by side, in the order of the first of each. */
export function groupsOf(entries: readonly BackupEntry[]): readonly (readonly BackupEntry[])[] {
  const groups = new Map<string, BackupEntry[]>();
  for (const entry of entries) {
    const key = entry.id ?? `${entry.storage}:${entry.directory}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [entry]);
    else group.push(entry);
  }
  return [...groups.values()];
}

/** The backup that these entries, one at least, are copies of. */
export async function backupOf(agent: Agent, entries: readonly BackupEntry[]): Promise<StoredBackup> {
  const entry = entries.find(({ state }) => state === 'Active') ?? entries[0];
  if (entry === undefined) throw new Error('a backup without a copy');
  const storages = await Promise.all(
    entries.map(async (copy): Promise<BackupCopy> => {
      const { storage: name, directory, state, problem, protected: isProtected, protectedReason } = copy;
      const { verified = null } = copy;
      const local = await agent.backups.isLocal(copy);
      const lockedUntil = lockedNow(copy, new Date());
      const shield = { protected: isProtected, protectedReason, lockedUntil };
      return { name, directory, local, state, problem, ...shield, verified };
    }),
  );
  return { entry, entries, state: entry.state, storages, localOnly: storages.every(({ local }) => local) };
}

/**
 * What a backup job has made, in the storages that it was to go to; `null` where there is nothing.
 * @throws StorageError, AgentError STORAGE_NOT_CONFIGURED
 */
export async function backupOfJob(agent: Agent, job: JobRow): Promise<StoredBackup | null> {
  const facts = agent.backupFacts(job);
  const entries: BackupEntry[] = [];
  for (const name of facts?.settings.storages ?? []) {
    const entry = facts === undefined ? null : await agent.storage(name).findCommitted(facts.backupId);
    if (entry !== null) entries.push(entry);
  }
  return entries.length === 0 ? null : backupOf(agent, entries);
}

/** What a backup takes in its storage; `null` where its manifest cannot be read. */
export function storedBytes(entry: BackupEntry): number | null {
  const { manifest } = entry;
  if (manifest === null) return null;
  const sizes = [
    ...manifest.volumes.map((volume) => volume.storedBytes),
    ...manifest.extras.map((extra) => extra.sizeBytes),
  ];
  return sizes.reduce((sum, size) => sum + size, manifest.memory?.sizeBytes ?? 0);
}
