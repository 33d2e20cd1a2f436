import { exists, type Ownership } from '../../common/files.ts';
import type { AddOptions, BackupWriter } from '../../storage/storage.ts';
import { SnapshotError } from '../snapshot/errors.ts';
import type { LivePlan, LiveVolume } from '../snapshot/livePlan.ts';
import { currentStateFile } from '../snapshot/stateFile.ts';
import {
  type ArtifactNames,
  definitionFileOf,
  extraFilesOf,
  type Retained,
  type RetainOptions,
} from './retain.ts';
import { copyFromFirst, type OpenVolume, type RetainedRead, secretOwnership } from './retainRead.ts';

/**
 * Puts a frozen point whose images stay with the machine into the storages: images that are files of their own are
 * copied (by reflink where that works), all others are read into the first storage, and copied from there. The
 * commit comes later. May be started again after a crash.
 * @throws SnapshotError MACHINE_INTERFERED when there is no memory state any more; StorageError, NbdError, or the
 * reason of `signal`
 */
export async function retainLive(
  writers: ReadonlyMap<string, BackupWriter>,
  plan: LivePlan,
  names: ArtifactNames,
  open: (volume: LiveVolume) => Promise<OpenVolume>,
  options: Omit<RetainOptions, 'deadlineMs'>,
): Promise<RetainedRead> {
  const files: Record<string, Retained> = {};
  for (const storage of writers.keys()) files[storage] = {};
  const add = async (
    name: string,
    what: string,
    ownership: Ownership,
    into: (writer: BackupWriter, first: BackupWriter | undefined) => ReturnType<BackupWriter['addByCopy']>,
  ): Promise<void> => {
    let first: BackupWriter | undefined;
    for (const [storage, writer] of writers) {
      const digest = await into(writer, first);
      first ??= writer;
      files[storage] = { ...files[storage], [name]: { ...digest, owner: ownership } };
      options.onProgress(`${storage}: ${what}`, digest.sizeBytes, digest.sizeBytes);
    }
  };
  const progress = (what: string, totalBytes: number, ownership: Ownership): AddOptions => ({
    ...options,
    ownership,
    onProgress: (doneBytes) => options.onProgress(what, doneBytes, totalBytes),
  });
  const copy = (file: string, name: string, what: string, totalBytes: number): Promise<void> =>
    add(name, what, secretOwnership, (writer) =>
      writer.addByCopy(file, name, progress(what, totalBytes, secretOwnership)),
    );

  const virtualSizeBytes: Record<string, number> = {};
  for (const volume of plan.volumes) {
    const { target, owner, allocatedBytes } = volume;
    const name = names.volume(target, 'qcow2');
    virtualSizeBytes[target] = volume.virtualSizeBytes;
    const how: AddOptions = { ...progress(target, allocatedBytes, owner), digest: 'chunks' };
    await add(name, target, owner, async (writer, first) => {
      if (volume.copyable) return writer.addByCopy(volume.file, name, how);
      if (first !== undefined) return copyFromFirst(first, writer, name, how);
      await using opened = await open(volume);
      // Awaited here: the source is closed when this returns.
      return await writer.addVolume(opened.source, name, how);
    });
  }
  await copy(await stateFileOf(plan), names.memory, 'memory', plan.memoryBytes);
  await copy(definitionFileOf(plan), names.definition, 'definition', 0);
  for (const { name, from, about } of extraFilesOf(plan, names)) await copy(from, name, about.kind, 0);
  return { files, virtualSizeBytes };
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
