import type { Ownership } from '../../common/files.ts';
import type { BackupWriter } from '../../storage/storage.ts';
import { isCopiedWhole } from '../snapshot/planReadVolume.ts';
import type { ReadPlan, ReadVolume } from '../snapshot/readPlan.ts';
import { KeptFiles } from './keptFiles.ts';
import { type ArtifactNames, definitionFileOf, extraFilesOf, type Retained } from './retain.ts';
import { type ChangingVolume, type ReadOptions, retainVolume } from './retainVolume.ts';

/** What a read left in the storages: the files of each, by storage, and the size of each volume at T1. */
export interface RetainedRead {
  readonly files: Readonly<Record<string, Retained>>;
  readonly virtualSizeBytes: Readonly<Record<string, number>>;
}

/** The same of volumes that may have been read in part only. */
export interface RetainedChanges extends RetainedRead {
  /** As it was planned, with what turned out on the way. */
  readonly plan: ReadPlan;
}

export const secretOwnership: Ownership = { uid: 0, gid: 0, mode: 0o600 };

/**
 * Reads every volume into the storages, as `retainVolume` does. The commit comes later.
 * @throws NbdError, StorageError, or the reason of `signal`
 */
export async function retainRead(
  writers: ReadonlyMap<string, BackupWriter>,
  plan: ReadPlan,
  names: ArtifactNames,
  open: (volume: ReadVolume) => Promise<ChangingVolume>,
  options: ReadOptions,
): Promise<RetainedChanges> {
  const kept = new KeptFiles(writers);
  const virtualSizeBytes: Record<string, number> = {};
  const volumes: ReadVolume[] = [];
  for (const volume of plan.volumes) {
    const name = names.volume(volume.target, 'qcow2');
    if (isCopiedWhole(volume)) {
      await copyWhole(writers, volume, name, options, kept);
      virtualSizeBytes[volume.target] = volume.virtualSizeBytes;
      volumes.push(volume);
      continue;
    }
    await using opened = await open(volume);
    virtualSizeBytes[volume.target] = opened.source.virtualSizeBytes;
    const { files, reads } = await retainVolume(writers, volume, name, opened, options);
    for (const [storage, stored] of Object.entries(files)) kept.add(storage, name, stored, volume.owner);
    volumes.push({ ...volume, reads });
  }
  const others = [{ name: names.definition, from: definitionFileOf(plan) }, ...extraFilesOf(plan, names)];
  for (const { name, from } of others) {
    for (const [storage, writer] of writers) {
      const { signal } = options;
      const stored = await writer.addByCopy(from, name, { signal, ownership: secretOwnership });
      kept.add(storage, name, stored, secretOwnership);
    }
  }
  for (const writer of writers.values()) await writer.flush(options);
  return { files: kept.files, virtualSizeBytes, plan: { ...plan, volumes } };
}

/** Stores an encrypted image as it stands: only who has its key can read what is stored, too. */
async function copyWhole(
  writers: ReadonlyMap<string, BackupWriter>,
  { file, target, owner, allocatedBytes }: ReadVolume,
  name: string,
  options: ReadOptions,
  kept: KeptFiles,
): Promise<void> {
  for (const [storage, writer] of writers) {
    const onProgress = (doneBytes: number): void =>
      options.onProgress(`${storage}: ${target}`, doneBytes, allocatedBytes);
    const how = { ...options, ownership: owner, digest: 'chunks', onProgress } as const;
    kept.add(storage, name, await writer.addByCopy(file, name, how), owner);
  }
}
