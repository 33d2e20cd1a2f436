import { fullnessWarning, type StorageSpace } from '../storage/space.ts';
import type { Manifest } from '../storage/manifest.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import type { Repositories, RepositoryContents } from './repositories.ts';

/** What a machine has in a storage. */
export interface MachineUsage {
  readonly name: string;
  readonly uuid: string | null;
  readonly backups: number;
  /** What its backups would take without deduplication and compression, zeros left out. */
  readonly referencedBytes: number;
}

/** What a storage holds. */
export interface StorageUsage extends StorageSpace {
  readonly kind: Storage['kind'];
  readonly location: string;
  readonly warning: string | null;
  readonly backups: number;
  readonly damagedBackups: number;
  /** What all backups would take without deduplication and compression, zeros left out. */
  readonly referencedBytes: number;
  /** How many times a stored byte is referenced, before compression; `null`: it is not known, or nothing is stored. */
  readonly deduplicationRatio: number | null;
  /** How many times as large what is stored was before its compression; `null` as above. */
  readonly compressionRatio: number | null;
  readonly machines: readonly MachineUsage[];
  /** Of a repository only. */
  readonly repository: RepositoryContents | null;
}

/**
 * Looks what a storage holds: every file or object of it.
 * @throws StorageError, RepositoryError
 */
export async function usageOf(storage: Storage, repositories: Repositories): Promise<StorageUsage> {
  const { name, kind, location, bounds } = storage;
  const repository = kind === 'repository' ? await repositories.contents(name) : null;
  const space = await storage.space({ measured: true });
  const entries = await storage.list();
  const machines = machinesOf(entries);
  const referencedBytes = machines.reduce((sum, machine) => sum + machine.referencedBytes, 0);
  return {
    ...space,
    kind,
    location,
    warning: fullnessWarning(name, space, bounds.warnPercent),
    backups: entries.length,
    damagedBackups: entries.filter(({ manifest }) => manifest === null).length,
    referencedBytes,
    ...ratiosOf(repository, referencedBytes),
    machines,
    repository,
  };
}

/** A directory neither deduplicates nor compresses; what its file system shares is not to be seen. */
function ratiosOf(
  repository: RepositoryContents | null,
  referencedBytes: number,
): Pick<StorageUsage, 'deduplicationRatio' | 'compressionRatio'> {
  const { chunkBytes = null, chunkPackBytes = 0 } = repository ?? {};
  if (chunkBytes === null || chunkBytes === 0 || chunkPackBytes === 0)
    return { deduplicationRatio: null, compressionRatio: null };
  return {
    deduplicationRatio: referencedBytes / chunkBytes,
    compressionRatio: chunkBytes / chunkPackBytes,
  };
}

function machinesOf(entries: readonly BackupEntry[]): readonly MachineUsage[] {
  const machines = new Map<string | null, MachineUsage>();
  for (const { machine, manifest } of entries) {
    if (manifest === null) continue;
    const { name, uuid } = machine;
    const before = machines.get(uuid) ?? { backups: 0, referencedBytes: 0 };
    const referencedBytes = before.referencedBytes + referencedBytesOf(manifest);
    machines.set(uuid, { name, uuid, backups: before.backups + 1, referencedBytes });
  }
  return [...machines.values()].toSorted((one, other) => one.name.localeCompare(other.name));
}

/** What a backup would take without deduplication and compression, zeros left out. */
export function referencedBytesOf({
  volumes,
  extras,
  memory,
}: Pick<Manifest, 'volumes' | 'extras' | 'memory'>): number {
  const sizes = [
    ...volumes.map(({ storedBytes }) => storedBytes),
    ...extras.map(({ sizeBytes }) => sizeBytes),
    memory?.sizeBytes ?? 0,
  ];
  return sizes.reduce((sum, size) => sum + size, 0);
}
