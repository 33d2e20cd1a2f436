import { join } from 'node:path';
import type { FileDigest } from '../../common/copy.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import { StorageError } from '../../storage/errors.ts';
import type { AddOptions, BackupWriter } from '../../storage/storage.ts';
import type { ReadVolume, VolumeRead } from '../snapshot/readPlan.ts';
import type { RetainOptions } from './retain.ts';

/** A volume that is open for reading. */
export interface OpenVolume extends AsyncDisposable {
  readonly source: VolumeSource;
}

/** The same, which can tell what has changed. */
export interface ChangingVolume extends OpenVolume {
  /** Every stretch in which it may differ from what it was at its plan's `since`. Rejects without that. */
  changes(): Promise<readonly Extent[]>;
}

export interface ReadOptions extends Omit<RetainOptions, 'deadlineMs'> {
  warn(message: string): void;
}

/** What a plan says of a volume that is to be read. */
export type ReadableVolume = Pick<ReadVolume, 'target' | 'owner' | 'allocatedBytes' | 'reads'>;

/** A volume in all storages. */
export interface RetainedVolume {
  /** By storage. */
  readonly files: Readonly<Record<string, FileDigest>>;
  /** How it came there, by storage. */
  readonly reads: Readonly<Record<string, VolumeRead>>;
}

/** Writes the whole volume into a storage without reading it from its source; `null` when it cannot. */
export type OtherWay = (writer: BackupWriter, options: AddOptions) => Promise<FileDigest | null>;

/**
 * Brings a volume into every storage: what has changed, where a storage has something that it can be added to;
 * otherwise whole into the first of the others, which the rest of them copy.
 * @throws NbdError, StorageError, or the reason of the signal
 */
export async function retainVolume(
  writers: ReadonlyMap<string, BackupWriter>,
  volume: ReadableVolume,
  name: string,
  opened: ChangingVolume,
  options: ReadOptions,
  otherWay: OtherWay = () => Promise.resolve(null),
): Promise<RetainedVolume> {
  const files: Record<string, FileDigest> = {};
  const reads: Record<string, VolumeRead> = { ...volume.reads };
  let whole: BackupWriter | undefined;
  for (const [storage, writer] of writers) {
    const planned = volume.reads[storage] ?? { reason: 'no increments are made' };
    const about = { storage, writer, volume, name, options };
    const increment = 'parent' in planned ? await addIncrement(about, planned.parent, opened) : null;
    if (increment !== null && 'sizeBytes' in increment) {
      files[storage] = increment;
      continue;
    }
    files[storage] = await addWhole(about, opened, whole, otherWay);
    reads[storage] = increment ?? planned;
    whole ??= writer;
  }
  return { files, reads };
}

/** What stands in the first storage already, copied into another. */
export function copyFromFirst(
  first: BackupWriter,
  writer: BackupWriter,
  name: string,
  options: AddOptions,
): ReturnType<BackupWriter['addByCopy']> {
  return writer.addByCopy(join(first.directory, name), name, options);
}

/** Where one volume goes. */
interface Destination {
  readonly storage: string;
  readonly writer: BackupWriter;
  readonly volume: ReadableVolume;
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
  otherWay: OtherWay,
): Promise<FileDigest> {
  const { target, owner, allocatedBytes } = volume;
  const about: AddOptions = {
    ...options,
    ownership: owner,
    digest: 'chunks',
    onProgress: (doneBytes) => options.onProgress(`${storage}: ${target}`, doneBytes, allocatedBytes),
  };
  const other = await otherWay(writer, about);
  if (other !== null) return other;
  return whole === undefined
    ? writer.addVolume(source, name, about)
    : copyFromFirst(whole, writer, name, about);
}
