import { join } from 'node:path';
import type { FileDigest } from '../../common/copy.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import { StorageError } from '../../storage/errors.ts';
import type { AddOptions, BackupWriter } from '../../storage/storage.ts';
import type { ReadVolume, VolumeRead } from '../snapshot/readPlan.ts';
import type { RetainOptions } from './retain.ts';
import { SharedSource } from './sharedSource.ts';

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
 * Brings a volume into every storage, and reads it once: what has changed goes to all storages that have something
 * that it can be added to at the same time; the others copy the whole from the first that has it as a file then, and
 * only where none has is the whole read. A storage that keeps no files reads it for itself.
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
  let first: Stored | undefined;
  for (const { storage, writer, increment } of await addIncrements(
    writers,
    { volume, name, options },
    opened,
  )) {
    if ('reason' in increment) {
      reads[storage] = increment;
      continue;
    }
    files[storage] = increment;
    first ??= storedIn(writer, increment);
  }
  for (const [storage, writer] of writers) {
    if (files[storage] !== undefined) continue;
    const digest = await addWhole({ storage, writer, volume, name, options }, opened, first, otherWay);
    files[storage] = digest;
    reads[storage] ??= { reason: 'no increments are made' };
    first ??= storedIn(writer, digest);
  }
  return { files, reads };
}

interface AddedIncrement {
  readonly storage: string;
  readonly writer: BackupWriter;
  /** What was written, or why it cannot be an increment. */
  readonly increment: FileDigest | { readonly reason: string };
}

/** Adds the increments that are planned, all at a time; when one storage fails, the others are stopped. */
async function addIncrements(
  writers: ReadonlyMap<string, BackupWriter>,
  about: Pick<Destination, 'volume' | 'name' | 'options'>,
  opened: ChangingVolume,
): Promise<readonly AddedIncrement[]> {
  const planned = [...writers].flatMap(([storage, writer]) => {
    const read = about.volume.reads[storage];
    return read !== undefined && 'parent' in read ? [{ storage, writer, parent: read.parent }] : [];
  });
  if (planned.length === 0) return [];
  const changes = await opened.changes();
  const failed = new AbortController();
  const signal = AbortSignal.any([about.options.signal, failed.signal]);
  const shared = new SharedSource(opened.source, signal);
  const added = await Promise.allSettled(
    planned
      .map((one) => ({ ...one, reader: shared.join() }))
      .map(async ({ storage, writer, parent, reader }): Promise<AddedIncrement> => {
        using source = reader;
        const to: Destination = { ...about, storage, writer, options: { ...about.options, signal } };
        try {
          return { storage, writer, increment: await addIncrement(to, parent, source, changes) };
        } catch (error) {
          failed.abort(error);
          throw error;
        }
      }),
  );
  about.options.signal.throwIfAborted();
  // Those that were only stopped fail with the same reason.
  failed.signal.throwIfAborted();
  return added.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
}

/** A volume that a storage has already, as a file. */
interface Stored {
  readonly directory: string;
  readonly digest: FileDigest;
}

function storedIn({ directory }: BackupWriter, digest: FileDigest): Stored | undefined {
  return directory === null ? undefined : { directory, digest };
}

/** What stands in one storage already, copied into another, and compared with what was written there. */
async function copyFrom(
  { directory, digest }: Stored,
  writer: BackupWriter,
  name: string,
  options: AddOptions,
): Promise<FileDigest> {
  const path = join(directory, name);
  const copied = await writer.addByCopy(path, name, options);
  if (copied.sha256 === digest.sha256) return copied;
  throw new StorageError('STORAGE_FAILED', `${path} does not hold any more what was just written to it`, {
    hint: `look at the disk that it is on: dmesg; smartctl -a`,
  });
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
  source: VolumeSource,
  changes: readonly Extent[],
): Promise<FileDigest | { readonly reason: string }> {
  const { target, owner } = volume;
  const totalBytes = changes.reduce((sum, { zero, lengthBytes }) => sum + (zero ? 0 : lengthBytes), 0);
  try {
    const increment = { parent: { backupId: parent, target }, changes };
    return await writer.addIncrement(source, increment, name, {
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

/** @param first a storage that has it already, whole as everything that is stored */
async function addWhole(
  { storage, writer, volume, name, options }: Destination,
  { source }: OpenVolume,
  first: Stored | undefined,
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
  if (first === undefined || writer.directory === null) return writer.addVolume(source, name, about);
  return copyFrom(first, writer, name, about);
}
