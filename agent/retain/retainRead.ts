import { join } from 'node:path';
import type { FileDigest } from '../../common/copy.ts';
import { StorageError } from '../../storage/errors.ts';
import type { AddOptions, BackupWriter } from '../../storage/storage.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import type { Ownership } from '../../common/files.ts';
import type { ReadPlan, ReadVolume, VolumeRead } from '../snapshot/readPlan.ts';
import {
  type ArtifactNames,
  definitionFileOf,
  extraFilesOf,
  type Retained,
  type RetainOptions,
} from './retain.ts';

/** A volume that is open for reading. */
export interface OpenVolume extends AsyncDisposable {
  readonly source: VolumeSource;
}

/** The same, which can tell what has changed. */
export interface ChangingVolume extends OpenVolume {
  /** Every stretch in which it may differ from what it was at its plan's `since`. Rejects without that. */
  changes(): Promise<readonly Extent[]>;
}

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

/** What stands in the first storage already, copied into another. */
export function copyFromFirst(
  first: BackupWriter,
  writer: BackupWriter,
  name: string,
  options: AddOptions,
): ReturnType<BackupWriter['addByCopy']> {
  return writer.addByCopy(join(first.directory, name), name, options);
}

export interface ReadOptions extends Omit<RetainOptions, 'deadlineMs'> {
  warn(message: string): void;
}

/**
 * Reads every volume into the storages: what has changed, where a storage has something that it can be added to;
 * otherwise whole into the first of the others, which the rest of them copy. The commit comes later.
 * @throws NbdError, StorageError, or the reason of `signal`
 */
export async function retainRead(
  writers: ReadonlyMap<string, BackupWriter>,
  plan: ReadPlan,
  names: ArtifactNames,
  open: (volume: ReadVolume) => Promise<ChangingVolume>,
  options: ReadOptions,
): Promise<RetainedChanges> {
  const files: Record<string, Retained> = {};
  for (const storage of writers.keys()) files[storage] = {};
  const keep = (storage: string, name: string, stored: FileDigest, owner: Ownership): void => {
    files[storage] = { ...files[storage], [name]: { ...stored, owner } };
  };
  const virtualSizeBytes: Record<string, number> = {};
  const volumes: ReadVolume[] = [];
  for (const volume of plan.volumes) {
    const name = names.volume(volume.target, 'qcow2');
    await using opened = await open(volume);
    virtualSizeBytes[volume.target] = opened.source.virtualSizeBytes;
    const reads: Record<string, VolumeRead> = { ...volume.reads };
    let whole: BackupWriter | undefined;
    for (const [storage, writer] of writers) {
      const planned = volume.reads[storage] ?? { reason: 'no increments are made' };
      const about = { storage, writer, volume, name, options };
      const increment = 'parent' in planned ? await addIncrement(about, planned.parent, opened) : null;
      if (increment !== null && 'sizeBytes' in increment) {
        keep(storage, name, increment, volume.owner);
        continue;
      }
      keep(storage, name, await addWhole(about, opened, whole), volume.owner);
      reads[storage] = increment ?? planned;
      whole ??= writer;
    }
    volumes.push({ ...volume, reads });
  }
  const others = [{ name: names.definition, from: definitionFileOf(plan) }, ...extraFilesOf(plan, names)];
  for (const { name, from } of others) {
    for (const [storage, writer] of writers) {
      const { signal } = options;
      const stored = await writer.addByCopy(from, name, { signal, ownership: secretOwnership });
      keep(storage, name, stored, secretOwnership);
    }
  }
  return { files, virtualSizeBytes, plan: { ...plan, volumes } };
}

/** Where one volume goes. */
interface Destination {
  readonly storage: string;
  readonly writer: BackupWriter;
  readonly volume: ReadVolume;
  readonly name: string;
  readonly options: ReadOptions;
}

/** The increment that was written, or why it cannot be one. */
async function addIncrement(
  { storage, writer, volume, name, options }: Destination,
  parent: string,
  opened: ChangingVolume,
): Promise<FileDigest | { readonly reason: string }> {
  const { target, owner } = volume;
  const changes = await opened.changes();
  const totalBytes = changes.reduce((sum, { zero, lengthBytes }) => sum + (zero ? 0 : lengthBytes), 0);
  try {
    const increment = { parent: { backupId: parent, target }, changes };
    return await writer.addIncrement(opened.source, increment, name, {
      ...options,
      ownership: owner,
      onProgress: (doneBytes) => options.onProgress(`${storage}: ${target}`, doneBytes, totalBytes),
    });
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'PARENT_UNUSABLE') throw error;
    options.warn(`${target} is read in full for storage ${storage}: ${error.message}`);
    return { reason: error.message };
  }
}

/** @param whole the storage that has it already */
async function addWhole(
  { storage, writer, volume, name, options }: Destination,
  { source }: OpenVolume,
  whole: BackupWriter | undefined,
): Promise<FileDigest> {
  const { target, owner, allocatedBytes } = volume;
  const about = { ...options, ownership: owner };
  if (whole === undefined)
    return writer.addVolume(source, name, {
      ...about,
      onProgress: (doneBytes) => options.onProgress(target, doneBytes, allocatedBytes),
    });
  return copyFromFirst(whole, writer, name, {
    ...about,
    digest: 'chunks',
    onProgress: (doneBytes) => options.onProgress(`${storage}: ${target}`, doneBytes, 0),
  });
}
