import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { cloneFile, type FileDigest } from '../../common/copy.ts';
import { exists } from '../../common/files.ts';
import type { AddOptions, BackupWriter } from '../../storage/storage.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import type { LivePlan, LiveVolume } from '../snapshot/livePlan.ts';
import { currentStateFile } from '../snapshot/stateFile.ts';
import { KeptFiles } from './keptFiles.ts';
import {
  type ArtifactNames,
  definitionFileOf,
  extraFilesOf,
  type RetainOptions,
  tidyImage,
  type TidyOptions,
} from './retain.ts';
import { type RetainedRead, secretOwnership } from './retainRead.ts';
import { type ChangingVolume, retainVolume } from './retainVolume.ts';

/** What a frozen point left in the storages. */
export interface RetainedLive extends RetainedRead {
  /** As it was planned, with what turned out on the way. */
  readonly plan: LivePlan;
}

/**
 * Puts a frozen point whose images stay with the machine into the storages: what has changed where that can be told;
 * otherwise images that are files of their own are shared with the storage where its file system can, and all others
 * are read. The commit comes later. May be started again after a crash.
 * @throws SnapshotError MACHINE_INTERFERED when there is no memory state any more; StorageError, NbdError, or the
 * reason of `signal`
 */
export async function retainLive(
  writers: ReadonlyMap<string, BackupWriter>,
  plan: LivePlan,
  names: ArtifactNames,
  open: (volume: LiveVolume) => Promise<ChangingVolume>,
  options: RetainOptions,
): Promise<RetainedLive> {
  const kept = new KeptFiles(writers);
  const virtualSizeBytes: Record<string, number> = {};
  const volumes: LiveVolume[] = [];
  for (const volume of plan.volumes) {
    const { target, owner } = volume;
    const name = names.volume(target, 'qcow2');
    virtualSizeBytes[target] = volume.virtualSizeBytes;
    await using opened = await open(volume);
    const { files, reads } = await retainVolume(writers, volume, name, opened, options, (writer, how) =>
      share(volume, writer, name, { add: how, tidy: options }),
    );
    for (const [storage, stored] of Object.entries(files)) kept.add(storage, name, stored, owner);
    volumes.push({ ...volume, reads });
  }
  const copy = async (file: string, name: string, what: string, totalBytes: number): Promise<void> => {
    for (const [storage, writer] of writers) {
      const stored = await writer.addByCopy(file, name, {
        ...options,
        ownership: secretOwnership,
        onProgress: (doneBytes) => options.onProgress(`${storage}: ${what}`, doneBytes, totalBytes),
      });
      kept.add(storage, name, stored, secretOwnership);
    }
  };
  await copy(await stateFileOf(plan), names.memory, 'memory', plan.memoryBytes);
  await copy(definitionFileOf(plan), names.definition, 'definition', 0);
  for (const { name, from, about } of extraFilesOf(plan, names)) await copy(from, name, about.kind, 0);
  for (const writer of writers.values()) await writer.flush(options);
  return { files: kept.files, virtualSizeBytes, plan: { ...plan, volumes } };
}

/** The frozen image itself, where the storage can share its blocks; the copy is brought into order. */
async function share(
  volume: LiveVolume,
  writer: BackupWriter,
  name: string,
  options: { readonly add: AddOptions; readonly tidy: TidyOptions },
): Promise<FileDigest | null> {
  if (!volume.copyable || writer.directory === null) return null;
  if (await writer.has(name)) return writer.addByCopy(volume.file, name, options.add);
  const clone = join(writer.directory, `.${volume.target}.tmp`);
  await rm(clone, { force: true });
  if (!(await cloneFile(volume.file, clone, 0o600))) return null;
  await tidyImage(clone, volume.target, options.tidy);
  return writer.addByRename(clone, name, options.add);
}

/** @throws SnapshotError MACHINE_INTERFERED */
async function stateFileOf(plan: LivePlan): Promise<string> {
  const file = await currentStateFile(plan);
  if (await exists(file)) return file;
  throw new SnapshotError(
    'MACHINE_INTERFERED',
    `the memory state ${file} is gone (a RAM disk loses it with its host)`,
    { hint: 'the machine is merged and runs on; start the backup again', retryable: true },
  );
}
