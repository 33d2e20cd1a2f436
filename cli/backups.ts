import type { Agent } from '../agent/agent.ts';
import type { BackupEntry } from '../storage/storage.ts';

/** One copy of a backup in one storage. */
export interface BackupCopy {
  readonly name: string;
  readonly directory: string;
  /** It stands on the file system that holds the machine's images. */
  readonly local: boolean;
  readonly state: BackupEntry['state'];
  readonly problem: string | null;
}

/** A backup with all its copies. */
export interface Backup {
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
): Promise<readonly Backup[]> {
  const groups = new Map<string, BackupEntry[]>();
  for (const entry of entries) {
    const key = entry.id ?? `${entry.storage}:${entry.directory}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [entry]);
    else group.push(entry);
  }
  return Promise.all([...groups.values()].map((group) => backupOf(agent, group)));
}

/** The backup with all its copies that an entry is one of. */
export async function backupOfEntry(agent: Agent, entry: BackupEntry): Promise<Backup> {
  const { id } = entry;
  if (id === null) return backupOf(agent, [entry]);
  const others: BackupEntry[] = [];
  for (const storage of agent.parts.storages.values()) {
    if (storage.name === entry.storage) continue;
    const other = (await storage.list()).find((candidate) => candidate.id === id);
    if (other !== undefined) others.push(other);
  }
  return backupOf(agent, [entry, ...others]);
}

async function backupOf(agent: Agent, entries: readonly BackupEntry[]): Promise<Backup> {
  const entry = entries.find(({ state }) => state === 'Active') ?? entries[0];
  if (entry === undefined) throw new Error('a backup without a copy');
  const storages = await Promise.all(
    entries.map(async (copy): Promise<BackupCopy> => {
      const { storage: name, directory, state, problem } = copy;
      return { name, directory, local: await agent.isLocal(copy), state, problem };
    }),
  );
  return { entry, entries, state: entry.state, storages, localOnly: storages.every(({ local }) => local) };
}

/** The fields of the manifest, and `state`, `problem` and `storages` beside them. */
export function backupJson({ entry, state, storages }: Backup): Readonly<Record<string, unknown>> {
  const { id, machine, pointInTime, manifest, problem } = entry;
  return { ...(manifest ?? { id, machine, pointInTime }), state, problem, storages };
}

/** What a backup takes in its storage. */
export function storedBytes(entry: BackupEntry): number | null {
  const { manifest } = entry;
  if (manifest === null) return null;
  const sizes = [
    ...manifest.volumes.map((volume) => volume.storedBytes),
    ...manifest.extras.map((extra) => extra.sizeBytes),
  ];
  return sizes.reduce((sum, size) => sum + size, manifest.memory?.sizeBytes ?? 0);
}

/** The beginning of an id: the millisecond of its making, which names it wherever an id is asked for. */
export function shortId(id: string): string {
  return id.slice(0, 13);
}
