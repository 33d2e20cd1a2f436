import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { BandwidthLimit } from '../../common/bandwidth.ts';
import type { FileDigest } from '../../common/copy.ts';
import { isErrno } from '../../common/errors.ts';
import { exists, type Ownership } from '../../common/files.ts';
import {
  checkImage,
  flattenImage,
  freeLeaks,
  QemuImageError,
  readImageInfo,
  removeBitmap,
} from '../../common/qemuImage.ts';
import { formatPointInTime } from '../../common/time.ts';
import { rememberedOwner } from '../../common/xattr.ts';
import { artifactNames } from '../../storage/directory/names.ts';
import { StorageError } from '../../storage/errors.ts';
import type { AddOptions, BackupWriter, Storage } from '../../storage/storage.ts';
import { isOurCheckpoint } from '../hypervisor/ourCheckpoints.ts';
import type { OpenVolume } from './retainVolume.ts';
import type { PlannedVolume, SavePlan } from '../snapshot/plan.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import type { ReadPlan } from '../snapshot/readPlan.ts';
import { currentStateFile } from '../snapshot/stateFile.ts';

/** Memory states hold everything that was in the guest's memory, and the definition's secrets. */
const secretOwnership: Ownership = { uid: 0, gid: 0, mode: 0o600 };

/** Names of a backup's files: `<machine>-<target>.qcow2.<T1>` and so on. */
export type ArtifactNames = ReturnType<typeof artifactNames>;

/** The names of the files of one backup. @param pointInTime RFC 3339 */
export function namesFor(machineName: string, pointInTime: string): ArtifactNames {
  return artifactNames(machineName, formatPointInTime(new Date(pointInTime)));
}

/** Where a plan keeps the definition that was valid at T1, until it is retained. */
export function definitionFile(plan: SavePlan): string {
  return join(plan.volumes[0]?.workDirectory ?? '', 'definition.xml');
}

/** The same of a plan that reads volumes where they are. */
export function definitionFileOf(plan: Pick<ReadPlan, 'workDirectories'>): string {
  return join(plan.workDirectories[0] ?? '', 'definition.xml');
}

/** What else is stored of a machine, from where, and how its manifest knows it. */
export interface ExtraFile {
  readonly name: string;
  readonly from: string;
  readonly about:
    | { readonly kind: 'nvram' | 'kernel' | 'initrd' | 'dtb' | 'loader' | 'tpm'; readonly source: string }
    | { readonly kind: 'network' | 'pool' | 'snapshot'; readonly name: string };
}

/** UEFI variables and the other extras of a plan. */
export function extraFilesOf(
  plan: Pick<SavePlan, 'nvram' | 'extras'>,
  names: ArtifactNames,
): readonly ExtraFile[] {
  const nvram: readonly ExtraFile[] =
    plan.nvram === null
      ? []
      : [{ name: names.nvram, from: plan.nvram.file, about: { kind: 'nvram', source: plan.nvram.source } }];
  const others = plan.extras.map((extra): ExtraFile => {
    const about =
      'source' in extra
        ? { kind: extra.kind, source: extra.source }
        : { kind: extra.kind, name: extra.label };
    return { name: names.extra(extra.kind, extra.label), from: extra.file, about };
  });
  return [...nvram, ...others];
}

/**
 * The order in which storages are filled: those that must copy first, because a rename takes the frozen images
 * away; only the last one may do that.
 */
export async function orderStorages(
  storages: readonly Storage[],
  plan: SavePlan,
): Promise<readonly Storage[]> {
  const ranked: { readonly storage: Storage; readonly shared: number }[] = [];
  for (const storage of storages) {
    let shared = 0;
    for (const volume of plan.volumes) if (await storage.takesByRename(volume.file)) shared += 1;
    ranked.push({ storage, shared });
  }
  return ranked.toSorted((a, b) => a.shared - b.shared).map(({ storage }) => storage);
}

/** What a save's volumes need to be stored. */
export interface RetainSaveOptions extends RetainOptions {
  /** Serves a frozen image, with what it stands on, to a storage that keeps no files. */
  openFrozen(volume: PlannedVolume): Promise<OpenVolume>;
}

export interface TidyOptions {
  readonly signal: AbortSignal;
  readonly deadlineMs: number;
  /** Says something that the user must know of a backup that is made all the same. */
  warn(message: string): void;
}

export interface RetainOptions extends TidyOptions {
  readonly limit: BandwidthLimit;
  onProgress(file: string, doneBytes: number, totalBytes: number): void;
}

/** Size and digest of every file of a backup in one storage, by file name, and the owners of the volumes. */
export type Retained = Record<string, FileDigest & { readonly owner: Ownership }>;

/**
 * Puts the artifacts of a frozen point into one storage; the commit comes later. May be started again after a
 * crash.
 * @param mayTake the storage is the last one that needs the frozen images: it may take them by rename
 * @throws SnapshotError MACHINE_INTERFERED when there is no memory state any more; StorageError, QemuImageError, or
 * the reason of `signal`
 */
export async function retainInto(
  writer: BackupWriter,
  plan: SavePlan,
  names: ArtifactNames,
  mayTake: boolean,
  options: RetainSaveOptions,
): Promise<Retained> {
  const stateFile = await currentStateFile(plan);
  if (!(await exists(stateFile)) && !(await writer.has(names.memory))) {
    throw new SnapshotError(
      'MACHINE_INTERFERED',
      `the memory state ${stateFile} is gone (a RAM disk loses it with its host)`,
      {
        hint: 'the machine is complete and runs on one image again; start the backup again',
        retryable: true,
      },
    );
  }
  const retained: Retained = {};
  for (const volume of plan.volumes) {
    const owner = await ownerOf(volume);
    const name = names.volume(volume.target, 'qcow2');
    retained[name] = { ...(await addVolume(writer, volume, name, { ...options, owner, mayTake })), owner };
  }
  const add = async (from: string, name: string, take: boolean): Promise<void> => {
    const progress = { ...progressOf(from, (await sizeOf(from)) ?? 0, options), ownership: secretOwnership };
    const digest = take
      ? await addTaking(writer, from, name, progress)
      : await writer.addByCopy(from, name, progress);
    retained[name] = { ...digest, owner: secretOwnership };
  };
  await add(stateFile, names.memory, mayTake);
  await add(definitionFile(plan), names.definition, false);
  for (const { name, from } of extraFilesOf(plan, names)) await add(from, name, false);
  await writer.flush(options);
  return retained;
}

async function addVolume(
  writer: BackupWriter,
  volume: PlannedVolume,
  name: string,
  options: RetainSaveOptions & { readonly owner: Ownership; readonly mayTake: boolean },
): Promise<FileDigest> {
  const progress = {
    ...progressOf(volume.target, volume.allocatedBytes, options),
    ownership: options.owner,
    digest: 'chunks',
  } as const;
  if (writer.directory === null) {
    await using opened = await options.openFrozen(volume);
    return await writer.addVolume(opened.source, name, progress);
  }
  await tidyImage(volume.frozen, volume.target, options);
  if (volume.base !== null) {
    // The artifact must stand alone: what the template holds is written into it.
    if (await writer.has(name)) return writer.addByCopy(volume.frozen, name, progress);
    const flat = join(writer.directory, `.${volume.target}.tmp`);
    await flattenImage(volume.frozen, flat, { signal: options.signal, deadlineMs: options.deadlineMs });
    return writer.addByRename(flat, name, progress);
  }
  return options.mayTake
    ? addTaking(writer, volume.frozen, name, progress)
    : writer.addByCopy(volume.frozen, name, progress);
}

/**
 * Brings a frozen image, or a copy of it, into the form in which it is stored: without what our checkpoints have noted
 * in it, and without clusters that belong to nothing, which a QEMU that was killed at any time has left there. Both take
 * space and are of no use in a stored image. One with errors stays as it is; the job tells of them.
 */
export async function tidyImage(image: string, target: string, options: TidyOptions): Promise<void> {
  if (!(await exists(image))) return;
  const { bitmaps } = await readImageInfo(image, 'qcow2');
  for (const name of bitmaps) if (isOurCheckpoint(name)) await removeBitmap(image, name);
  try {
    const { errors, leaks } = await checkImage(image, options);
    if (errors > 0)
      options.warn(
        `the machine's image of ${target} is damaged, and stored as it is: qemu-img check finds ${errors} error(s) in it`,
      );
    else if (leaks > 0) await freeLeaks(image, options);
  } catch (error) {
    options.signal.throwIfAborted();
    if (!(error instanceof QemuImageError)) throw error;
    // A backup of an image that cannot be looked at is better than none.
    options.warn(
      `the machine's image of ${target} could not be checked, and is stored as it is: ${error.message}`,
    );
  }
}

/** Moves a file into a storage where a rename can do it, and copies it otherwise. */
async function addTaking(
  writer: BackupWriter,
  from: string,
  name: string,
  options: AddOptions,
): Promise<FileDigest> {
  // A crash came after it. Where it was copied, what it was made of is still there as well.
  if (await writer.has(name)) return writer.addByCopy(from, name, options);
  try {
    return await writer.addByRename(from, name, options);
  } catch (error) {
    // Two mounts of one file system can look like one, but no rename leads from one to the other.
    const elsewhere =
      error instanceof StorageError && (error.code === 'CROSS_FILE_SYSTEM' || isErrno(error.cause, 'EXDEV'));
    if (!elsewhere) throw error;
    return writer.addByCopy(from, name, options);
  }
}

function progressOf(
  what: string,
  totalBytes: number,
  options: RetainOptions,
): {
  readonly signal: AbortSignal;
  readonly limit: BandwidthLimit;
  readonly onProgress: (doneBytes: number) => void;
} {
  const { signal, limit } = options;
  return {
    signal,
    limit,
    onProgress: (doneBytes) => options.onProgress(what, doneBytes, totalBytes),
  };
}

async function sizeOf(path: string): Promise<number | undefined> {
  return (await exists(path)) ? (await stat(path)).size : undefined;
}

/** Owner, group and mode of the machine's image as they are while QEMU does not have it. */
async function ownerOf(volume: PlannedVolume): Promise<Ownership> {
  const { uid, gid, mode } = await stat(volume.file);
  const remembered = await rememberedOwner(volume.file);
  return { uid: remembered?.uid ?? uid, gid: remembered?.gid ?? gid, mode: mode & 0o7777 };
}
