import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { StillpointError } from '../common/errors.ts';
import type { FileDigest } from '../common/copy.ts';
import type { Hold } from '../common/hold.ts';
import { StorageError, type StorageErrorCode } from '../storage/errors.ts';
import type { Manifest, ManifestVolume } from '../storage/manifest.ts';
import type {
  AddOptions,
  BackupEntry,
  BackupWriter,
  Increment,
  OpenArtifact,
  Storage,
  StoredFile,
} from '../storage/storage.ts';
import { secretOwnership } from './retain/retainRead.ts';
import { answerMs, ImageExport } from './snapshot/imageExport.ts';
import { makeRunDirectory } from './snapshot/runDirectory.ts';

/** What is to be copied, and where to. */
export interface ReplicationRequest {
  /** Names or UUIDs; all unless told. */
  readonly machines: readonly string[];
  readonly from: Storage;
  readonly to: Storage;
  /** Other storages that are copied to it: what came from them says nothing about what was pruned of this one. */
  readonly siblings?: readonly string[] | undefined;
  /** Also backups that are older than the newest one there: by then they may have been pruned there. */
  readonly older: boolean;
}

export interface CopyOptions {
  readonly signal: AbortSignal;
  /** Closed while it is to move no data. */
  readonly hold?: Hold | undefined;
  /** Where sockets are made. */
  readonly runDirectory: string;
  onProgress(what: string, doneBytes: number): void;
  /** A copy that failed could not be ended in order either: `storage gc` waits for it until it is repeated. */
  onLeftOpen(error: unknown): void;
}

/** One backup that is to be copied. */
export interface PlannedCopy {
  readonly entry: BackupEntry;
  /** The newest before it, of the same machine, that the other storage has, or has by then. */
  readonly parent: Manifest | null;
}

/**
 * What a copy would bring, oldest first: good backups that the other storage does not have, and of each machine those
 * that are newer than the newest one there.
 * @throws StorageError, RepositoryError
 */
export async function planReplication({
  machines,
  from,
  to,
  older,
  siblings = [],
}: ReplicationRequest): Promise<readonly PlannedCopy[]> {
  const there = await to.list();
  const has = new Set(there.flatMap(({ id, state }) => (state === 'Active' ? (id ?? []) : [])));
  const taken = new Set(there.map(({ id }) => id));
  const here = await from.list();
  const newest = newestThere(there, new Set(here.map(({ id }) => id)), from.name, siblings);
  const parents = new Map<string | null, Manifest>();
  const plan: PlannedCopy[] = [];
  for (const entry of here) {
    const { id, machine, manifest, pointInTime, state } = entry;
    if (state !== 'Active' || id === null || manifest === null) continue;
    const isWanted =
      !taken.has(id) &&
      (machines.length === 0 || machines.includes(machine.name) || machines.includes(machine.uuid ?? '')) &&
      (older || pointInTime > (newest.get(machine.uuid) ?? ''));
    if (isWanted) plan.push({ entry, parent: parents.get(machine.uuid) ?? null });
    if (isWanted || has.has(id)) parents.set(machine.uuid, manifest);
  }
  return plan;
}

/**
 * Of each machine the point in time of the newest backup there, as far as it says what was copied of this storage: one
 * that came from a sibling may be newer than what is still to be copied. Where nothing there came from this storage, it
 * is the newest of all.
 */
function newestThere(
  there: readonly BackupEntry[],
  idsHere: ReadonlySet<string | null>,
  from: string,
  siblings: readonly string[],
): ReadonlyMap<string | null, string> {
  const others = new Set(siblings.filter((name) => name !== from).map(copiedFrom));
  const newestOfAll = new Map<string | null, string>();
  const newestOfThis = new Map<string | null, string>();
  for (const { id, machine, manifest, pointInTime } of there) {
    newestOfAll.set(machine.uuid, pointInTime);
    const cameFromOther = manifest?.volumes.some(({ reason }) => others.has(reason ?? '')) === true;
    if (!cameFromOther || (id !== null && idsHere.has(id))) newestOfThis.set(machine.uuid, pointInTime);
  }
  return new Map([...newestOfAll, ...newestOfThis]);
}

/** What a manifest says of a volume that was copied; a later copy reads from it where the backup came from. */
function copiedFrom(storage: string): string {
  return `copied from storage ${storage}`;
}

/** A storage that could not be looked at for what is to be copied. */
export interface UnreadSource {
  readonly storage: string;
  readonly error: StillpointError;
}

/** What is to be copied into one storage from several, oldest first. */
export interface SourcesPlan {
  readonly copies: readonly (PlannedCopy & { readonly from: Storage })[];
  readonly unread: readonly UnreadSource[];
}

/**
 * What a copy from several storages, of which each backup is in one, would bring. One that is away hides nothing of the
 * others: what it has is brought when it is back.
 * @param siblings all storages that are copied there
 * @throws StorageError, RepositoryError of the target, or of the first source where none can be looked at
 */
export async function planFromSources(
  sources: readonly Storage[],
  { siblings = sources.map(({ name }) => name), ...request }: Omit<ReplicationRequest, 'from'>,
): Promise<SourcesPlan> {
  const copies = new Map<string | null, PlannedCopy & { readonly from: Storage }>();
  const unread: UnreadSource[] = [];
  // A target that is away is no fault of a source.
  if (sources.length > 1) await request.to.list();
  for (const from of sources) {
    try {
      for (const planned of await planReplication({ ...request, from, siblings }))
        if (!copies.has(planned.entry.id)) copies.set(planned.entry.id, { ...planned, from });
    } catch (error) {
      if (!(error instanceof StillpointError) || sources.length === 1) throw error;
      unread.push({ storage: from.name, error });
    }
  }
  const [first] = unread;
  if (first !== undefined && unread.length === sources.length) throw first.error;
  const byAge = [...copies.values()].toSorted((a, b) =>
    a.entry.pointInTime < b.entry.pointInTime ? -1 : a.entry.pointInTime > b.entry.pointInTime ? 1 : 0,
  );
  return { copies: byAge, unread };
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
  { entry, parent }: PlannedCopy,
  options: CopyOptions,
): Promise<BackupEntry> {
  const { manifest } = entry;
  if (manifest === null) throw new StorageError('BACKUP_DAMAGED', `${entry.directory} cannot be read`);
  const present = await to.findCommitted(manifest.id);
  if (present !== null) return present;
  // Nobody else compares files while they are served. A repository compares all that it hands out.
  if (from.kind === 'directory') await requireWhole(from, entry, options);
  const writer = await to.begin({
    jobId: manifest.id,
    backupId: manifest.id,
    machine: manifest.machine,
    afterFence: true,
    hold: options.hold,
  });
  try {
    return await copyInto(writer, from, entry, { ...options, manifest, parent });
  } catch (error) {
    await writer.suspend().catch((left: unknown) => options.onLeftOpen(left));
    throw error;
  }
}

async function copyInto(
  writer: BackupWriter,
  from: Storage,
  entry: BackupEntry,
  { manifest, parent, ...options }: CopyOptions & Pick<PlannedCopy, 'parent'> & { manifest: Manifest },
): Promise<BackupEntry> {
  const copy = new Copy(from, writer, entry.directory, {
    ...options,
    runDirectory: join(options.runDirectory, manifest.id),
  });
  const volumes: ManifestVolume[] = [];
  for (const volume of manifest.volumes) {
    const stored = await copy.volume(volume, parent);
    const { parent: _parent, ...kept } = volume;
    const read = { read: 'full', reason: copiedFrom(from.name) } as const;
    volumes.push({ ...kept, ...read, storedBytes: stored.sizeBytes, sha256: stored.sha256 });
  }
  const memory = manifest.memory && { ...manifest.memory, ...(await copy.file(manifest.memory)) };
  // It is small; its manifest does not say how small.
  const { sha256 } = await copy.file({ ...manifest.definition, sizeBytes: 0 });
  const extras: Manifest['extras'] = [];
  for (const extra of manifest.extras) extras.push({ ...extra, ...(await copy.file(extra)) });
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
  const { signal, hold } = options;
  const report = await from.verify(entry, {
    data: true,
    signal,
    hold,
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

/** What a volume differs from in its parent; `null` where that cannot be told, and all of it is to be read. */
async function incrementOf(
  opened: OpenArtifact,
  { target, virtualSizeBytes }: ManifestVolume,
  parent: Manifest | null,
): Promise<Increment | null> {
  const before = parent?.volumes.find((volume) => volume.target === target);
  if (parent === null || before === undefined) return null;
  if (before.encrypted === true || before.virtualSizeBytes !== virtualSizeBytes) return null;
  try {
    const changes = await opened.changesSince(before.sha256);
    return { parent: { backupId: parent.id, target }, changes };
  } catch (error) {
    // The parent's damage is not this volume's.
    if (!isUnusable(error, 'BACKUP_DAMAGED')) throw error;
    return null;
  }
}

function isUnusable(error: unknown, code: StorageErrorCode): boolean {
  return error instanceof StorageError && error.code === code;
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
    const increment = await incrementOf(opened, volume, parent);
    if (increment === null) return this.#writer.addVolume(opened.source, file, how);
    try {
      return await this.#writer.addIncrement(opened.source, increment, file, how);
    } catch (error) {
      if (!isUnusable(error, 'PARENT_UNUSABLE')) throw error;
      return this.#writer.addVolume(opened.source, file, how);
    }
  }

  /** Definition, memory state and the like. */
  async file(stored: Omit<StoredFile, 'path'> & { readonly file: string }): Promise<FileDigest> {
    const { file, sizeBytes, sha256 } = stored;
    const { signal } = this.#options;
    const how = { signal, ownership: secretOwnership, onProgress: this.#progressOf(file) };
    const artifact = { path: join(this.#directory, file), sizeBytes, sha256 };
    return this.#opaque(artifact, await this.#from.open(artifact), file, how);
  }

  /** What is copied as it stands. */
  async #opaque(
    artifact: StoredFile,
    opened: OpenArtifact | null,
    name: string,
    how: AddOptions,
    as: 'opaque volume' | 'file' = 'file',
  ): Promise<FileDigest> {
    if (opened === null) return this.#writer.addByCopy(artifact.path, name, how);
    const { directory } = this.#writer;
    if (directory === null) return this.#writer.addVolume(opened.source, name, how);
    if (await this.#writer.has(name)) return this.#writer.addByCopy(join(directory, name), name, how);
    const whole = join(directory, `.${name}.tmp`);
    await rm(whole, { force: true });
    const { signal, onProgress } = how;
    await this.#from.copyOut(artifact, whole, { as, signal, onProgress, hold: this.#options.hold });
    return this.#writer.addByRename(whole, name, how);
  }

  #progressOf(what: string): (doneBytes: number) => void {
    return (doneBytes) => this.#options.onProgress(what, doneBytes);
  }
}
