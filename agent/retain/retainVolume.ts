import { join } from 'node:path';
import type { FileDigest } from '../../common/copy.ts';
import type { Change, VolumeSource } from '../../common/volumeSource.ts';
import { StorageError } from '../../storage/errors.ts';
import type { AddOptions, BackupWriter } from '../../storage/storage.ts';
import type { ReadVolume, VolumeRead } from '../snapshot/readPlan.ts';
import type { RetainOptions } from './retain.ts';
import { joined, SharedSource, stretchesOf } from './sharedSource.ts';

/** A volume that is open for reading. */
export interface OpenVolume extends AsyncDisposable {
  readonly source: VolumeSource;
}

/** The same, which can tell what has changed. */
export interface ChangingVolume extends OpenVolume {
  /** Every stretch in which it may differ from what it was at its plan's `since`. Rejects without that. */
  changes(): Promise<readonly Change[]>;
}

export type ReadOptions = Omit<RetainOptions, 'deadlineMs'>;

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
 * Brings a volume into every storage, and reads it once: what has changed, for storages that have something that it can
 * be added to; the whole for one that keeps files, and for each that keeps none; all at the same time. The other
 * storages copy the whole from the first that has it as a file. One whose increment turns out not to be possible reads
 * the whole for itself where nothing can be copied.
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
  const have = (storage: string, writer: BackupWriter, digest: FileDigest): void => {
    files[storage] = digest;
    reads[storage] ??= { reason: 'no increments are made' };
    first ??= storedIn(writer, digest);
  };
  const destinations = [...writers].map(
    ([storage, writer]): Destination => ({ storage, writer, volume, name, options }),
  );
  for (const to of destinations) {
    if (parentOf(to) !== undefined) continue;
    const digest = await otherWay(to.writer, wholeOptions(to));
    if (digest !== null) have(to.storage, to.writer, digest);
  }
  const readers = destinations.filter(({ storage }) => files[storage] === undefined);
  for (const { storage, writer, stored } of await addTogether(chosen(readers, first), opened, options)) {
    if ('reason' in stored) reads[storage] = stored;
    else have(storage, writer, stored);
  }
  for (const to of destinations) {
    if (files[to.storage] !== undefined) continue;
    const digest =
      (await otherWay(to.writer, wholeOptions(to))) ??
      (first === undefined || to.writer.directory === null
        ? await addWhole(to, opened.source)
        : await copyFrom(first, to.writer, name, wholeOptions(to)));
    have(to.storage, to.writer, digest);
  }
  return { files, reads };
}

/** Those that read: of storages that keep files, and have nothing that it can be added to, only one, if any. */
function chosen(readers: readonly Destination[], first: Stored | undefined): readonly Destination[] {
  const keepsFiles = ({ writer }: Destination): boolean => writer.directory !== null;
  const hasParent = (to: Destination): boolean => parentOf(to) !== undefined;
  const isThere = first !== undefined || readers.some((to) => keepsFiles(to) && hasParent(to));
  const whole = isThere ? undefined : readers.find(keepsFiles);
  return readers.filter((to) => hasParent(to) || !keepsFiles(to) || to === whole);
}

function parentOf({ storage, volume }: Destination): string | undefined {
  const read = volume.reads[storage];
  return read !== undefined && 'parent' in read ? read.parent : undefined;
}

interface Added {
  readonly storage: string;
  readonly writer: BackupWriter;
  /** What was written, or why it cannot be an increment. */
  readonly stored: FileDigest | { readonly reason: string };
}

/** Adds increments and whole volumes, all at a time; when one storage fails, the others are stopped. */
async function addTogether(
  destinations: readonly Destination[],
  opened: ChangingVolume,
  options: ReadOptions,
): Promise<readonly Added[]> {
  if (destinations.length === 0) return [];
  const changes = destinations.some((to) => parentOf(to) !== undefined) ? await opened.changes() : [];
  const failed = new AbortController();
  const signal = AbortSignal.any([options.signal, failed.signal]);
  const sources = await sourcesFor(destinations, opened.source, changes, signal);
  const added = await Promise.allSettled(
    destinations.map(async (about, place): Promise<Added> => {
      using source = sources[place];
      if (source === undefined) throw new Error('each reader has a source');
      const { storage, writer } = about;
      const to: Destination = { ...about, options: { ...options, signal } };
      const parent = parentOf(to);
      try {
        const stored =
          parent === undefined
            ? await addWhole(to, source.volume)
            : await addIncrement(to, parent, source.volume, changes);
        return { storage, writer, stored };
      } catch (error) {
        failed.abort(error);
        throw error;
      }
    }),
  );
  options.signal.throwIfAborted();
  // Those that were only stopped fail with the same reason.
  failed.signal.throwIfAborted();
  return added.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
}

/** What one of several readers reads from. */
interface ReaderSource extends Disposable {
  readonly volume: VolumeSource;
}

/** Who is alone reads as it likes. */
async function sourcesFor(
  destinations: readonly Destination[],
  source: VolumeSource,
  changes: readonly Change[],
  signal: AbortSignal,
): Promise<readonly ReaderSource[]> {
  if (destinations.length === 1) return [{ volume: source, [Symbol.dispose]: () => undefined }];
  const wholeExtents = destinations.every((to) => parentOf(to) !== undefined)
    ? []
    : await source.extents(signal);
  const wanted = destinations.flatMap((to) =>
    stretchesOf(
      parentOf(to) === undefined ? wholeExtents : changes,
      to.writer.readUnitBytes,
      source.virtualSizeBytes,
    ),
  );
  const shared = new SharedSource(source, joined(wanted), signal);
  return destinations
    .map(() => shared.join())
    .map((volume) => ({ volume, [Symbol.dispose]: () => volume[Symbol.dispose]() }));
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
  changes: readonly Change[],
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

function addWhole(to: Destination, source: VolumeSource): Promise<FileDigest> {
  return to.writer.addVolume(source, to.name, wholeOptions(to));
}

function wholeOptions({ storage, volume, options }: Destination): AddOptions {
  const { target, owner, allocatedBytes } = volume;
  return {
    ...options,
    ownership: owner,
    digest: 'chunks',
    onProgress: (doneBytes) => options.onProgress(`${storage}: ${target}`, doneBytes, allocatedBytes),
  };
}
