import { join } from 'node:path';
import type { AddOptions, BackupWriter } from '../../storage/storage.ts';
import type { VolumeSource } from '../../common/volumeSource.ts';
import type { Ownership } from '../../common/files.ts';
import type { ReadPlan, ReadVolume } from '../snapshot/readPlan.ts';
import { type ArtifactNames, definitionFileOf, type Retained, type RetainOptions } from './retain.ts';

/** A volume that is open for reading. */
export interface OpenVolume extends AsyncDisposable {
  readonly source: VolumeSource;
}

/** What a read left in the storages: the files of each, by storage, and the size of each volume at T1. */
export interface RetainedRead {
  readonly files: Readonly<Record<string, Retained>>;
  readonly virtualSizeBytes: Readonly<Record<string, number>>;
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

/**
 * Reads every volume once, into the first storage; the others get copies of what stands there. The commit comes
 * later.
 * @throws NbdError, StorageError, or the reason of `signal`
 */
export async function retainRead(
  writers: ReadonlyMap<string, BackupWriter>,
  plan: ReadPlan,
  names: ArtifactNames,
  open: (volume: ReadVolume) => Promise<OpenVolume>,
  options: Omit<RetainOptions, 'deadlineMs'>,
): Promise<RetainedRead> {
  const files: Record<string, Retained> = {};
  for (const storage of writers.keys()) files[storage] = {};
  const virtualSizeBytes: Record<string, number> = {};
  const add = async (
    name: string,
    what: string,
    { ownership, digest }: Pick<AddOptions, 'digest'> & { readonly ownership: Ownership },
    intoFirst: (writer: BackupWriter) => ReturnType<BackupWriter['addByCopy']>,
  ): Promise<void> => {
    let first: BackupWriter | undefined;
    for (const [storage, writer] of writers) {
      const stored =
        first === undefined
          ? await intoFirst(writer)
          : await copyFromFirst(first, writer, name, {
              ...options,
              ownership,
              digest,
              onProgress: (doneBytes) => options.onProgress(`${storage}: ${what}`, doneBytes, 0),
            });
      first ??= writer;
      files[storage] = { ...files[storage], [name]: { ...stored, owner: ownership } };
    }
  };

  for (const volume of plan.volumes) {
    await using opened = await open(volume);
    const { source } = opened;
    virtualSizeBytes[volume.target] = source.virtualSizeBytes;
    const name = names.volume(volume.target, 'qcow2');
    await add(name, volume.target, { ownership: volume.owner, digest: 'chunks' }, (writer) =>
      writer.addVolume(source, name, {
        ...options,
        ownership: volume.owner,
        onProgress: (doneBytes) => options.onProgress(volume.target, doneBytes, volume.allocatedBytes),
      }),
    );
  }
  const definition = definitionFileOf(plan);
  await add(names.definition, 'definition', { ownership: secretOwnership }, (writer) =>
    writer.addByCopy(definition, names.definition, { signal: options.signal, ownership: secretOwnership }),
  );
  const { nvram } = plan;
  if (nvram !== null)
    await add(names.nvram, 'NVRAM', { ownership: secretOwnership }, (writer) =>
      writer.addByCopy(nvram.file, names.nvram, { signal: options.signal, ownership: secretOwnership }),
    );
  return { files, virtualSizeBytes };
}
