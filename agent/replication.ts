import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { FileDigest } from '../common/copy.ts';
import type { Ownership } from '../common/files.ts';
import { StorageError } from '../storage/errors.ts';
import type { Manifest, ManifestVolume } from '../storage/manifest.ts';
import type { BackupEntry, BackupWriter, OpenArtifact, Storage, StoredFile } from '../storage/storage.ts';
import { ImageExport } from './snapshot/imageExport.ts';
import { makeRunDirectory } from './snapshot/runDirectory.ts';

/** A server that gives no sign of life for so long counts as dead. */
const answerMs = 120_000;
const secretOwnership: Ownership = { uid: 0, gid: 0, mode: 0o600 };

/** What is to be copied, and where to. */
export interface ReplicationRequest {
  /** Names or UUIDs; all unless told. */
  readonly machines: readonly string[];
  readonly from: Storage;
  readonly to: Storage;
  /** Also backups that are older than the newest one there: by then they may have been pruned there. */
  readonly older: boolean;
}

export interface CopyOptions {
  readonly signal: AbortSignal;
  /** Where sockets are made. */
  readonly runDirectory: string;
  onProgress(what: string, doneBytes: number): void;
}

/**
 * The backups that a copy would bring, oldest first: good ones that the other storage does not have, and of each machine
 * those that are newer than the newest one there.
 * @throws StorageError, RepositoryError
 */
export async function planReplication({
  machines,
  from,
  to,
  older,
}: ReplicationRequest): Promise<readonly BackupEntry[]> {
  const there = await to.list();
  const ids = new Set(there.map(({ id }) => id));
  const newest = new Map<string | null, string>();
  for (const { machine, pointInTime } of there) newest.set(machine.uuid, pointInTime);
  return (await from.list()).filter(
    ({ id, machine, pointInTime, state }) =>
      state === 'Active' &&
      !ids.has(id) &&
      (machines.length === 0 || machines.includes(machine.name) || machines.includes(machine.uuid ?? '')) &&
      (older || pointInTime > (newest.get(machine.uuid) ?? '')),
  );
}

/**
 * Copies a backup into another storage, as the same backup. What is copied was compared with what was stored; of what a
 * repository holds, only chunks that the copy before has not are read. May be repeated after whatever ended it: what
 * has arrived in a repository is not sent again.
 * @throws StorageError BACKUP_DAMAGED, …; RepositoryError BACKUP_FENCED for one that was deleted there; or the reason
 * of the signal
 */
export async function copyBackup(
  from: Storage,
  to: Storage,
  entry: BackupEntry,
  options: CopyOptions,
): Promise<BackupEntry> {
  const { manifest } = entry;
  if (manifest === null) throw new StorageError('BACKUP_DAMAGED', `${entry.directory} cannot be read`);
  const present = await to.findCommitted(manifest.id);
  if (present !== null) return present;
  // Nobody else compares files while they are served. A repository compares all that it hands out.
  if (from.kind === 'directory') await requireWhole(from, entry, options);
  const writer = await to.begin({ jobId: manifest.id, backupId: manifest.id, machine: manifest.machine });
  const parent = from.kind === 'repository' ? await commonParent(from, to, entry) : null;
  const copy = new Copy(from, writer, entry.directory, {
    ...options,
    runDirectory: join(options.runDirectory, manifest.id),
  });
  const volumes: ManifestVolume[] = [];
  for (const volume of manifest.volumes) {
    const stored = await copy.volume(volume, parent);
    const { parent: _parent, ...kept } = volume;
    const read = { read: 'full', reason: `copied from storage ${from.name}` } as const;
    volumes.push({ ...kept, ...read, storedBytes: stored.sizeBytes, sha256: stored.sha256 });
  }
  const file = (name: string, sha256: string): Promise<FileDigest> =>
    copy.file({ path: join(entry.directory, name), sizeBytes: 0, sha256 }, name);
  const memory = manifest.memory && {
    ...manifest.memory,
    ...(await file(manifest.memory.file, manifest.memory.sha256)),
  };
  const { sha256 } = await file(manifest.definition.file, manifest.definition.sha256);
  const extras: Manifest['extras'] = [];
  for (const extra of manifest.extras) extras.push({ ...extra, ...(await file(extra.file, extra.sha256)) });
  await writer.flush({ signal: options.signal });
  const definition = { ...manifest.definition, sha256 };
  return writer.commit({
    ...manifest,
    volumes,
    ...(memory === undefined ? {} : { memory }),
    definition,
    extras,
  });
}

/** @throws StorageError BACKUP_DAMAGED */
async function requireWhole(from: Storage, entry: BackupEntry, options: CopyOptions): Promise<void> {
  const { signal } = options;
  const report = await from.verify(entry, {
    data: true,
    signal,
    onProgress: ({ bytesDone }) => options.onProgress('comparing', bytesDone),
  });
  const bad = report.files.find(({ verdict }) => verdict !== 'ok');
  if (bad === undefined) return;
  throw new StorageError(
    'BACKUP_DAMAGED',
    `${bad.file} of ${entry.directory} is damaged: ${bad.detail ?? bad.verdict}`,
    {
      hint: `stillpoint verify ${entry.id ?? ''} --data; it is not copied`,
    },
  );
}

/** The newest backup before this one, of the same machine, that both storages have. */
async function commonParent(from: Storage, to: Storage, entry: BackupEntry): Promise<Manifest | null> {
  const { uuid } = entry.machine;
  if (uuid === null) return null;
  const there = new Set(
    (await to.list({ machine: uuid })).map(({ id, state }) => (state === 'Active' ? id : null)),
  );
  const before = (await from.list({ machine: uuid })).filter(
    ({ id, pointInTime, state }) => state === 'Active' && there.has(id) && pointInTime < entry.pointInTime,
  );
  return before.at(-1)?.manifest ?? null;
}

/** The files of one backup on their way. */
class Copy {
  readonly #from: Storage;
  readonly #writer: BackupWriter;
  readonly #directory: string;
  readonly #options: CopyOptions;

  constructor(from: Storage, writer: BackupWriter, directory: string, options: CopyOptions) {
    this.#from = from;
    this.#writer = writer;
    this.#directory = directory;
    this.#options = options;
  }

  async volume(volume: ManifestVolume, parent: Manifest | null): Promise<FileDigest> {
    const { target, file, owner, sha256, storedBytes, format } = volume;
    const { signal } = this.#options;
    const how = { signal, ownership: owner, digest: 'chunks', onProgress: this.#progressOf(target) } as const;
    const artifact = { path: join(this.#directory, file), sizeBytes: storedBytes, sha256 };
    const opened = await this.#from.open(artifact);
    if (volume.encrypted) return this.#opaque(artifact, opened, file, how, 'opaque volume');
    if (opened === null) {
      const directory = this.#options.runDirectory;
      await makeRunDirectory(directory);
      try {
        await using exported = await ImageExport.open({ target, file: artifact.path, format }, directory, {
          answerMs,
          signal,
        });
        return await this.#writer.addVolume(exported.volume, file, how);
      } finally {
        await rm(directory, { recursive: true, force: true });
      }
    }
    const before = parent?.volumes.find((one) => one.target === target && one.encrypted !== true);
    if (parent !== null && before !== undefined && before.virtualSizeBytes === volume.virtualSizeBytes) {
      const increment = {
        parent: { backupId: parent.id, target },
        changes: await opened.changesSince(before.sha256),
      };
      try {
        return await this.#writer.addIncrement(opened.source, increment, file, how);
      } catch (error) {
        if (!(error instanceof StorageError) || error.code !== 'PARENT_UNUSABLE') throw error;
      }
    }
    return this.#writer.addVolume(opened.source, file, how);
  }

  /** Definition, memory state and the like. */
  async file(artifact: StoredFile, name: string): Promise<FileDigest> {
    const how = {
      signal: this.#options.signal,
      ownership: secretOwnership,
      onProgress: this.#progressOf(name),
    };
    return this.#opaque(artifact, await this.#from.open(artifact), name, how);
  }

  /** What is copied as it stands. */
  async #opaque(
    artifact: StoredFile,
    opened: OpenArtifact | null,
    name: string,
    how: Parameters<BackupWriter['addByCopy']>[2],
    as: 'opaque volume' | 'file' = 'file',
  ): Promise<FileDigest> {
    if (opened === null) return this.#writer.addByCopy(artifact.path, name, how);
    const { directory } = this.#writer;
    if (directory === null) return this.#writer.addVolume(opened.source, name, how);
    if (await this.#writer.has(name)) return this.#writer.addByCopy(join(directory, name), name, how);
    const whole = join(directory, `.${name}.tmp`);
    await rm(whole, { force: true });
    await this.#from.copyOut(artifact, whole, { as, signal: this.#options.signal });
    return this.#writer.addByRename(whole, name, how);
  }

  #progressOf(what: string): (doneBytes: number) => void {
    return (doneBytes) => this.#options.onProgress(what, doneBytes);
  }
}
