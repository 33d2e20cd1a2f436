import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { errorRecord, messageOf } from '../../common/errors.ts';
import { sameDevice } from '../../common/files.ts';
import type { CallOptions } from '../backends/backend.ts';
import { selectEntry } from '../directory/find.ts';
import { backupLockedError } from '../backupLock.ts';
import { StorageError } from '../errors.ts';
import type { HostManifest } from '../hostManifest.ts';
import { protectedError } from '../protection.ts';
import type {
  BackupEntry,
  BackupWriter,
  BeginRequest,
  CopiedOut,
  CopyOutOptions,
  HostBackupEntry,
  OpenArtifact,
  PartialBackup,
  Protection,
  ReadWatch,
  Storage,
  StorageCheck,
  StoredFile,
  VerifyOptions,
  VerifyReport,
} from '../storage.ts';
import type { DataVerification, Verification } from '../verification.ts';
import { backupLockedUntil } from '../repository/backupLock.ts';
import { deleteBackup, listBackups, readBackup, type StoredBackup } from '../repository/backups.ts';
import { quarantineFound } from '../repository/condemned.ts';
import { copyOut } from './copyOut.ts';
import { RepositoryError } from '../repository/errors.ts';
import { hostName } from '../repository/names.ts';
import { FileSource } from './fileSource.ts';
import { deleteHost, listHosts, putHost, readHost } from '../repository/hostRecords.ts';
import { toManifest } from './manifestTranslation.ts';
import { removeRecords } from '../repository/numberedRecords.ts';
import { endSession, isLeft, type JobFate } from '../repository/leftSessions.ts';
import { openSessions } from '../repository/openSessions.ts';
import { rebuildIndex } from '../repository/rebuild.ts';
import { addReading, listReadings } from '../repository/readingRecords.ts';
import { addVerification, listVerifications } from '../repository/verificationRecords.ts';
import { listProtections, readProtection, writeProtection } from '../repository/protections.ts';
import type { Repository } from '../repository/repository.ts';
import { RepositoryBackupWriter } from './writer.ts';
import { storedBytesOf } from '../repository/storedBytes.ts';
import { noBounds, type StorageBounds, type StorageSpace } from '../space.ts';
import type { StreamReader } from '../repository/streamReader.ts';
import { writeStream } from '../repository/streamWriter.ts';
import { verifyBackup } from '../repository/verifyRepository.ts';

/** Far more than libvirt writes for any machine. */
const textBytesMax = 4 * 1024 * 1024;

export interface RepositoryStorageOptions {
  readonly name: string;
  /** Where it is, for people. */
  readonly location: string;
  /** Opens the repository; called when something of it is needed, and again after a failure. */
  readonly open: () => Promise<Repository>;
  /** Room of its place; `null` where that has no bounds. */
  readonly room: () => Promise<{ readonly capacityBytes: number; readonly freeBytes: number } | null>;
  /** Where its place is a directory; `null` for one of a server. */
  readonly directory?: string | null | undefined;
  /** What the configuration allows it; `open` gives a repository that keeps to the quota. */
  readonly bounds?: StorageBounds | undefined;
  /** What this host knows of jobs; nothing unless told. */
  readonly fateOf?: ((jobId: string) => JobFate) | undefined;
  /** Removes what writers that were killed have left in its place; returns how much. */
  readonly removeLeftovers?: (() => Promise<number>) | undefined;
}

/** A deduplicating, encrypted repository as a place for backups. */
export class RepositoryStorage implements Storage {
  readonly kind = 'repository';
  readonly name: string;
  readonly location: string;
  readonly bounds: StorageBounds;
  readonly #options: RepositoryStorageOptions;
  #opened: Promise<Repository> | null = null;
  /** Backups of this process that are not committed, and all of whose packs an index names. */
  readonly #named = new Set<string>();

  constructor(options: RepositoryStorageOptions) {
    this.name = options.name;
    this.location = options.location;
    this.bounds = options.bounds ?? noBounds;
    this.#options = options;
  }

  /** The repository, opened once. */
  async repository(): Promise<Repository> {
    this.#opened ??= this.#options.open();
    try {
      return await this.#opened;
    } catch (error) {
      this.#opened = null;
      throw error;
    }
  }

  /**
   * The repository as it is configured by now. A service lives long: meanwhile another process may have had it lock
   * objects, or made another one in its place, and credentials, which are read when it is opened, may have changed.
   */
  async #newest(): Promise<Repository> {
    const repository = await this.repository();
    const opened = this.#opened;
    try {
      if (await repository.isCurrent()) return repository;
    } catch (error) {
      if (!(error instanceof StorageError) || error.code !== 'STORAGE_DENIED') throw error;
    }
    // Unless somebody else has opened it again meanwhile.
    if (this.#opened === opened) this.#opened = null;
    return this.repository();
  }

  async check(): Promise<StorageCheck> {
    const about = { name: this.name, location: this.location };
    try {
      // One that was opened long ago may be away by now.
      await (await this.#newest()).requireThere();
      return {
        ...about,
        ok: true,
        freeBytes: (await this.#options.room())?.freeBytes ?? null,
        problem: null,
      };
    } catch (error) {
      return { ...about, ok: false, freeBytes: null, problem: errorRecord(error) };
    }
  }

  async space({ measured = false }: { readonly measured?: boolean | undefined } = {}): Promise<StorageSpace> {
    const { quotaBytes } = this.bounds;
    const { context } = await this.repository();
    const storedBytes = measured || quotaBytes !== null ? await storedBytesOf(context.backend) : null;
    const { capacityBytes = null, freeBytes = null } = (await this.#options.room()) ?? {};
    return { capacityBytes, freeBytes, storedBytes, quotaBytes };
  }

  /** Nothing can be moved into it. */
  takesByRename(): Promise<boolean> {
    return Promise.resolve(false);
  }

  isOnDeviceOf(path: string): Promise<boolean> {
    const { directory = null } = this.#options;
    return directory === null ? Promise.resolve(false) : sameDevice(directory, path);
  }

  /** What is there already is not stored again. */
  sharesBlocks(): Promise<boolean> {
    return Promise.resolve(true);
  }

  async begin({ jobId, backupId, afterFence, hold }: BeginRequest): Promise<BackupWriter> {
    const repository = await this.#newest();
    // Mostly it is its commit that begins now.
    if (!this.#named.delete(backupId)) await this.#takeUpLeft(repository, backupId);
    const startedAt = new Date().toISOString();
    const session = await repository.begin({ backupId, jobId, startedAt, afterFence, throttle: hold });
    return new RepositoryBackupWriter(repository, session, {
      entryOf: (id) => this.#committed(id),
      onFlushed: () => this.#named.add(backupId),
      throttle: hold,
    });
  }

  /**
   * Where this host has left a session open (its process died, or the store was away when it failed), no index may name
   * what arrived: it is named now, so that nobody sends it again, and sessions that nobody goes on with are ended.
   */
  async #takeUpLeft({ context }: Repository, backupId: string): Promise<void> {
    const open = await openSessions(context);
    const left = open.filter((session) => isLeft(session, this.#options.fateOf ?? (() => 'unknown')));
    if (left.length === 0 && !open.some((session) => session.backupId === backupId)) return;
    try {
      if (!context.keys.isWriter) await rebuildIndex(context, { dryRun: false });
      for (const session of left) await endSession(context, session);
    } catch (error) {
      // A store that is full, a pack of a newer version: then it is sent again. A store that is away says so again.
      if (!(error instanceof StorageError || error instanceof RepositoryError)) throw error;
    }
  }

  async findCommitted(backupId: string): Promise<BackupEntry | null> {
    const { context } = await this.repository();
    const backup = await readBackup(context, backupId);
    return backup === null ? null : this.#entryOf(backup, await readProtection(context, backupId));
  }

  async #committed(backupId: string): Promise<BackupEntry> {
    const entry = await this.findCommitted(backupId);
    if (entry === null) throw this.#notFound(`backup ${backupId}`);
    return entry;
  }

  async list(filter: { readonly machine?: string | undefined } = {}): Promise<readonly BackupEntry[]> {
    const { context } = await this.repository();
    const protections = await listProtections(context);
    const verifications = await listVerifications(context);
    const readings = await listReadings(context);
    const entries: BackupEntry[] = [];
    for (const backup of await listBackups(context)) {
      entries.push({
        ...this.#entryOf(backup, protections.get(backup.id) ?? null),
        verified: verifications.get(backup.id) ?? null,
        dataVerified: readings.get(backup.id) ?? null,
        lockedUntil: (await backupLockedUntil(context, backup.id))?.toISOString() ?? null,
      });
    }
    return entries.filter(
      ({ machine }) => filter.machine === undefined || [machine.name, machine.uuid].includes(filter.machine),
    );
  }

  async find(idOrName: string): Promise<BackupEntry> {
    return selectEntry(await this.list(), idOrName);
  }

  #entryOf({ id, manifest, problem }: StoredBackup, protection: Protection | null): BackupEntry {
    const machine = manifest?.machine ?? { name: 'unknown', uuid: null };
    const about = {
      storage: this.name,
      id,
      machine,
      problem,
      protected: protection !== null,
      protectedReason: protection?.reason ?? null,
    };
    if (manifest === null) {
      // Its T1 is in the manifest that cannot be read; the time in its id comes near to it.
      const pointInTime = new Date(Number.parseInt(id.replace('-', '').slice(0, 12), 16)).toISOString();
      return { ...about, directory: `${this.name}:${id}`, pointInTime, state: 'Killed', manifest: null };
    }
    const { pointInTime } = manifest;
    return {
      ...about,
      directory: `${this.name}:${manifest.machine.name}/${pointInTime}`,
      pointInTime,
      state: 'Active',
      manifest: toManifest(manifest),
    };
  }

  async verify(entry: BackupEntry, options: VerifyOptions): Promise<VerifyReport> {
    const { id } = entry;
    const { data } = options;
    if (id === null || entry.manifest === null) {
      const detail = entry.problem;
      return {
        id,
        ok: false,
        data,
        files: [{ file: entry.directory, kind: 'manifest', verdict: 'structure', detail }],
      };
    }
    const repository = await this.repository();
    const files = await verifyBackup(repository, id, {
      data,
      compared: options.compared,
      signal: options.signal,
      onProgress: options.onProgress,
      onDamagedPack: (problem) => quarantineFound(repository.context, problem),
    });
    return { id, ok: files.every(({ verdict }) => verdict === 'ok'), data, files };
  }

  async delete(entry: BackupEntry): Promise<void> {
    if (entry.id === null) return;
    const { context } = await this.#newest();
    const protection = await readProtection(context, entry.id);
    if (protection !== null) throw protectedError(entry, protection.reason);
    const lockedUntil = await backupLockedUntil(context, entry.id);
    if (lockedUntil !== null) throw backupLockedError(entry, lockedUntil.toISOString());
    // Pictures are large, and say nothing without the backup. In this order a crash leaves a backup that nobody has tried.
    await removeRecords(context, 'verifications', entry.id);
    await removeRecords(context, 'readings', entry.id);
    await deleteBackup(context, entry.id, new Date().toISOString());
  }

  async setProtected(entry: BackupEntry, protection: Protection | null): Promise<void> {
    const { context } = await this.#newest();
    const found = entry.id === null ? null : await this.findCommitted(entry.id);
    if (found?.id === null || found === null) throw this.#notFound(entry.directory);
    await writeProtection(context, found.id, protection);
  }

  async addVerification(
    entry: BackupEntry,
    verification: Omit<Verification, 'picture'>,
    pictureFile: string | null,
  ): Promise<Verification> {
    const { context } = await this.repository();
    const found = entry.id === null ? null : await this.findCommitted(entry.id);
    if (found?.id === null || found === null) throw this.#notFound(entry.directory);
    const picture = pictureFile === null ? null : await readFile(pictureFile);
    return addVerification(context, found.id, verification, picture);
  }

  async addDataVerification(entry: BackupEntry, verification: DataVerification): Promise<void> {
    const { context } = await this.repository();
    const found = entry.id === null ? null : await this.findCommitted(entry.id);
    if (found?.id === null || found === null) throw this.#notFound(entry.directory);
    await addReading(context, found.id, verification);
  }

  reading<T>(_what: string, read: (watch: ReadWatch) => Promise<T>): Promise<T> {
    return read({ signal: new AbortController().signal, alive: () => undefined });
  }

  async copyOut(artifact: StoredFile, to: string, options: CopyOutOptions): Promise<CopiedOut> {
    return this.#reading(artifact, options, (stream) => copyOut(stream, artifact.sizeBytes, to, options));
  }

  open(artifact: Pick<StoredFile, 'path' | 'sha256'>): Promise<OpenArtifact> {
    return this.#reading(artifact, {}, async (source) => ({
      source,
      changesSince: (sha256) =>
        this.#reading({ path: artifact.path, sha256 }, {}, (before) => source.changesSince(before)),
    }));
  }

  async requireReading(): Promise<void> {
    (await this.repository()).context.keys.requireReading(this.name);
  }

  async readText(artifact: Pick<StoredFile, 'path' | 'sha256'>): Promise<string> {
    return this.#reading(artifact, {}, async (stream) => {
      if (stream.virtualSizeBytes <= textBytesMax) return (await stream.readAll()).toString('utf8');
      throw new StorageError(
        'BACKUP_DAMAGED',
        `${artifact.path} is too large: ${stream.virtualSizeBytes} bytes`,
      );
    });
  }

  /** One content has one root, so the file's is computed, and nothing stored. */
  async isSameAs({ sha256 }: Pick<StoredFile, 'sha256'>, hostFile: string): Promise<boolean> {
    const { config, context } = await this.repository();
    await using source = await FileSource.open(hostFile);
    const { root } = await writeStream(
      source,
      { put: (domain, content) => Promise.resolve(context.namer.idOf(domain, content)) },
      { chunkSizeBytes: config.chunkSizeBytes },
    );
    return root === sha256;
  }

  /** @throws StorageError BACKUP_DAMAGED */
  async #reading<T>(
    { path, sha256 }: Pick<StoredFile, 'path' | 'sha256'>,
    call: CallOptions,
    read: (stream: StreamReader) => Promise<T>,
  ): Promise<T> {
    await this.requireReading();
    const repository = await this.repository();
    try {
      return await read(await repository.openStream(await repository.contentOf(sha256, call), call));
    } catch (error) {
      if (!(error instanceof RepositoryError)) throw error;
      throw new StorageError('BACKUP_DAMAGED', `${path} is not what was stored: ${messageOf(error)}`, {
        cause: error,
        hint: 'nothing was changed; stillpoint verify BACKUP --data tells what else is damaged; another copy, or an older backup, may be whole',
      });
    }
  }

  /** Sessions of this host; those of others are theirs to end. */
  async partials(): Promise<readonly PartialBackup[]> {
    const { context } = await this.repository();
    const partials: PartialBackup[] = [];
    for (const { backupId, announcement } of await openSessions(context)) {
      if (announcement === null || announcement.host !== hostname()) continue;
      partials.push({
        jobId: announcement.jobId ?? backupId,
        directory: `${this.name}:${backupId}`,
        changedAt: announcement.startedAt,
      });
    }
    return partials;
  }

  /** A deletion is one object: there is nothing to finish. */
  async cleanUp(): Promise<number> {
    return (await this.#options.removeLeftovers?.()) ?? 0;
  }

  async addHostBackup(manifest: HostManifest, files: ReadonlyMap<string, string>): Promise<string> {
    const repository = await this.repository();
    repository.requireLock();
    await putHost(repository.context, manifest, files);
    return this.#hostPlace(manifest.id);
  }

  async hostBackups(): Promise<readonly HostBackupEntry[]> {
    const { context } = await this.repository();
    const stored = await listHosts(context);
    const locks =
      (await context.lock?.locked(stored.map(({ id }) => hostName(id)))) ?? new Map<string, Date>();
    const entries = stored.map(({ id, manifest, files, problem }): HostBackupEntry => {
      const broken = manifest?.items.find(
        ({ file, sha256 }) =>
          createHash('sha256')
            .update(files[file] ?? '')
            .digest('hex') !== sha256,
      );
      return {
        storage: this.name,
        host: manifest?.host.name ?? 'unknown',
        directory: this.#hostPlace(id),
        pointInTime: manifest?.pointInTime ?? new Date(0).toISOString(),
        manifest,
        problem: problem ?? (broken === undefined ? null : `${broken.file} was damaged or changed`),
        lockedUntil: locks.get(hostName(id))?.toISOString() ?? null,
      };
    });
    return entries.toSorted((a, b) => (a.pointInTime < b.pointInTime ? -1 : 1));
  }

  async hostFile({ directory }: Pick<HostBackupEntry, 'directory'>, file: string): Promise<Buffer> {
    const { context } = await this.repository();
    const host = await readHost(context, this.#hostIdOf(directory));
    const text = host?.files[file];
    if (text === undefined) throw this.#notFound(`${directory}/${file}`);
    return Buffer.from(text, 'utf8');
  }

  async deleteHostBackup({ directory }: Pick<HostBackupEntry, 'directory'>): Promise<void> {
    const { context } = await this.repository();
    const id = this.#hostIdOf(directory);
    if ((await readHost(context, id)) === null) throw this.#notFound(directory);
    await deleteHost(context, id);
  }

  #hostPlace(id: string): string {
    return `${this.name}:hosts/${id}`;
  }

  #hostIdOf(directory: string): string {
    const id = directory.slice(this.#hostPlace('').length);
    if (directory !== this.#hostPlace(id) || !/^[0-9a-f-]{36}$/.test(id)) throw this.#notFound(directory);
    return id;
  }

  #notFound(what: string): StorageError {
    return new StorageError('BACKUP_NOT_FOUND', `${what} is not there any more`, { hint: 'stillpoint list' });
  }
}
