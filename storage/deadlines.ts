import type { FileDigest } from '../common/copy.ts';
import type { ReadOptions } from '../common/pieces.ts';
import { errorRecord } from '../common/errors.ts';
import type { Hold } from '../common/hold.ts';
import type { VolumeSource } from '../common/volumeSource.ts';
import { StorageError } from './errors.ts';
import { type Watch, withDeadline } from './silence.ts';
import type { HostManifest } from './hostManifest.ts';
import type { StorageBounds, StorageSpace } from './space.ts';
import type { Manifest } from './manifest.ts';
import type { DataVerification, Verification } from './verification.ts';
import type {
  HostBackupEntry,
  OpenArtifact,
  AddOptions,
  BackupEntry,
  BackupWriter,
  BeginRequest,
  CopiedOut,
  CopyOutOptions,
  Increment,
  PartialBackup,
  Protection,
  ReadWatch,
  Storage,
  StorageCheck,
  StoredFile,
  VerifyOptions,
  VerifyReport,
} from './storage.ts';

/** How often bringing to the disk what was read counts as a sign of life. */
const aliveMs = 1000;

/** How long a storage may be silent, in milliseconds. */
export interface StoragePatience {
  /** Until the answer to a question of some bytes. */
  readonly answerMs: number;
  /** Between two signs of progress of an operation that moves data, and of one that waits for a disk. */
  readonly stallMs: number;
}

/**
 * A storage that never keeps its caller waiting for ever. A network file system whose server is gone lets every
 * call hang, uninterruptibly; the call stays behind and ends when the server is back, so whatever it does then
 * must be harmless: it was told to stop, and its files have names of their own.
 */
export class DeadlineStorage implements Storage {
  readonly #storage: Storage;
  readonly #patience: StoragePatience;

  constructor(storage: Storage, patience: StoragePatience) {
    this.#storage = storage;
    this.#patience = patience;
  }

  get name(): string {
    return this.#storage.name;
  }

  get kind(): Storage['kind'] {
    return this.#storage.kind;
  }

  get location(): string {
    return this.#storage.location;
  }

  get bounds(): StorageBounds {
    return this.#storage.bounds;
  }

  /** A large storage has many files to look at: it has the time of an operation. */
  space(options?: { readonly measured?: boolean | undefined }): Promise<StorageSpace> {
    return this.#stall('a look at its room', () => this.#storage.space(options));
  }

  async check(): Promise<StorageCheck> {
    try {
      return await this.#answer('its check', () => this.#storage.check());
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      const { name, location } = this;
      return { name, location, ok: false, freeBytes: null, problem: errorRecord(error) };
    }
  }

  takesByRename(path: string): Promise<boolean> {
    return this.#answer('a question for its file system', () => this.#storage.takesByRename(path));
  }

  isOnDeviceOf(path: string): Promise<boolean> {
    return this.#answer('a question for its file system', () => this.#storage.isOnDeviceOf(path));
  }

  sharesBlocks(): Promise<boolean> {
    return this.#answer('a question for its file system', () => this.#storage.sharesBlocks());
  }

  async begin(request: BeginRequest): Promise<BackupWriter> {
    const writer = await this.#stall('the beginning of a backup', () => this.#storage.begin(request));
    return new DeadlineWriter(writer, this, this.#patience, request.hold);
  }

  findCommitted(backupId: string): Promise<BackupEntry | null> {
    return this.#stall('the search for a backup', () => this.#storage.findCommitted(backupId));
  }

  list(filter?: { readonly machine?: string | undefined }): Promise<readonly BackupEntry[]> {
    return this.#stall('the list of its backups', () => this.#storage.list(filter));
  }

  find(idOrName: string): Promise<BackupEntry> {
    return this.#stall('the search for a backup', () => this.#storage.find(idOrName));
  }

  verify(entry: BackupEntry, options: VerifyOptions): Promise<VerifyReport> {
    const verify = (watch: Watch): Promise<VerifyReport> =>
      this.#storage.verify(entry, {
        ...options,
        signal: watch.signalWith(options.signal),
        onProgress: (done) => {
          watch.alive();
          options.onProgress?.(done);
        },
      });
    return withDeadline(this, 'verifying a backup', this.#patience.stallMs, verify, options.hold);
  }

  delete(entry: BackupEntry): Promise<void> {
    return this.#stall('the deletion of a backup', () => this.#storage.delete(entry));
  }

  setProtected(entry: BackupEntry, protection: Protection | null): Promise<void> {
    return this.#stall('the protection of a backup', () => this.#storage.setProtected(entry, protection));
  }

  addVerification(
    entry: BackupEntry,
    verification: Omit<Verification, 'picture'>,
    pictureFile: string | null,
  ): Promise<Verification> {
    return this.#stall('the result of a verification', () =>
      this.#storage.addVerification(entry, verification, pictureFile),
    );
  }

  addDataVerification(entry: BackupEntry, verification: DataVerification): Promise<void> {
    return this.#stall('the result of a verification', () =>
      this.#storage.addDataVerification(entry, verification),
    );
  }

  async copyOut(artifact: StoredFile, to: string, options: CopyOutOptions): Promise<CopiedOut> {
    let afterwards: NodeJS.Timeout | undefined;
    try {
      const copy = (watch: Watch): Promise<CopiedOut> =>
        this.#storage.copyOut(artifact, to, {
          ...options,
          signal: watch.signalWith(options.signal),
          onProgress: (bytesDone) => {
            watch.alive();
            // Once its last byte was read the storage has no part in what may still take long.
            if (bytesDone >= artifact.sizeBytes) afterwards ??= setInterval(() => watch.alive(), aliveMs);
            options.onProgress?.(bytesDone);
          },
        });
      const { stallMs } = this.#patience;
      return await withDeadline(this, `reading ${artifact.path}`, stallMs, copy, options.hold);
    } finally {
      clearInterval(afterwards);
    }
  }

  async open(artifact: Pick<StoredFile, 'path' | 'sha256'>): Promise<OpenArtifact | null> {
    const opened = await this.#stall(`opening ${artifact.path}`, () => this.#storage.open(artifact));
    if (opened === null) return null;
    const source = this.#watched(opened.source, `reading ${artifact.path}`);
    return { source, changesSince: (sha256) => opened.changesSince(sha256) };
  }

  requireReading(): Promise<void> {
    return this.#answer('its key', () => this.#storage.requireReading());
  }

  readText(artifact: Pick<StoredFile, 'path' | 'sha256'>): Promise<string> {
    return this.#stall(`reading ${artifact.path}`, () => this.#storage.readText(artifact));
  }

  isSameAs(artifact: Pick<StoredFile, 'sha256'>, hostFile: string): Promise<boolean> {
    return this.#stall(`comparing ${hostFile}`, () => this.#storage.isSameAs(artifact, hostFile));
  }

  reading<T>(what: string, read: (watch: ReadWatch) => Promise<T>): Promise<T> {
    return withDeadline(this, what, this.#patience.stallMs, (watch) =>
      this.#storage.reading(what, (inner) =>
        read({ signal: watch.signalWith(inner.signal), alive: () => watch.alive() }),
      ),
    );
  }

  partials(): Promise<readonly PartialBackup[]> {
    return this.#stall('the search for unfinished work', () => this.#storage.partials());
  }

  cleanUp(): Promise<number> {
    return this.#stall('cleaning up', () => this.#storage.cleanUp());
  }

  addHostBackup(manifest: HostManifest, files: ReadonlyMap<string, string>): Promise<string> {
    return this.#stall('the backup of a host', () => this.#storage.addHostBackup(manifest, files));
  }

  hostBackups(): Promise<readonly HostBackupEntry[]> {
    return this.#stall('the list of backups of hosts', () => this.#storage.hostBackups());
  }

  hostFile(entry: Pick<HostBackupEntry, 'directory'>, file: string): Promise<Buffer> {
    return this.#stall(`reading ${file}`, () => this.#storage.hostFile(entry, file));
  }

  deleteHostBackup(entry: Pick<HostBackupEntry, 'directory'>): Promise<void> {
    return this.#stall(`removing ${entry.directory}`, () => this.#storage.deleteHostBackup(entry));
  }

  /** A source that is this storage's own: whoever it is copied to does not answer for its silence. */
  #watched(source: VolumeSource, what: string): VolumeSource {
    const watches = new Set<Watch>();
    const asked = <T>(ask: (signal: AbortSignal) => Promise<T>, signal?: AbortSignal): Promise<T> =>
      withDeadline(this, what, this.#patience.stallMs, async (watch) => {
        watches.add(watch);
        try {
          return await ask(watch.signalWith(signal));
        } finally {
          watches.delete(watch);
          // Reads of one source take their turns: each that ends is a sign of life for the others.
          for (const other of watches) other.alive();
        }
      });
    return {
      virtualSizeBytes: source.virtualSizeBytes,
      extents: (signal) => asked((bounded) => source.extents(bounded), signal),
      readInto: (target, offsetBytes, signal) =>
        asked((bounded) => source.readInto(target, offsetBytes, bounded), signal),
    };
  }

  #answer<T>(what: string, operation: () => Promise<T>): Promise<T> {
    return withDeadline(this, what, this.#patience.answerMs, operation);
  }

  #stall<T>(what: string, operation: () => Promise<T>): Promise<T> {
    return withDeadline(this, what, this.#patience.stallMs, operation);
  }
}

class DeadlineWriter implements BackupWriter {
  readonly #writer: BackupWriter;
  readonly #storage: Storage;
  readonly #patience: StoragePatience;
  readonly #hold: Hold | undefined;

  constructor(writer: BackupWriter, storage: Storage, patience: StoragePatience, hold: Hold | undefined) {
    this.#writer = writer;
    this.#storage = storage;
    this.#patience = patience;
    this.#hold = hold;
  }

  get directory(): string | null {
    return this.#writer.directory;
  }

  get readUnitBytes(): number {
    return this.#writer.readUnitBytes;
  }

  has(fileName: string): Promise<boolean> {
    return withDeadline(this.#storage, `looking for ${fileName}`, this.#patience.answerMs, () =>
      this.#writer.has(fileName),
    );
  }

  addByRename(from: string, fileName: string, options: AddOptions = {}): Promise<FileDigest> {
    return this.#moving(`storing ${fileName}`, options, (watched) =>
      this.#writer.addByRename(from, fileName, { ...options, ...watched }),
    );
  }

  addByCopy(from: string, fileName: string, options: AddOptions = {}): Promise<FileDigest> {
    return this.#moving(`storing ${fileName}`, options, (watched) =>
      this.#writer.addByCopy(from, fileName, { ...options, ...watched }),
    );
  }

  addVolume(source: VolumeSource, fileName: string, options: AddOptions = {}): Promise<FileDigest> {
    return this.#moving(`storing ${fileName}`, options, (watched, alive) =>
      this.#writer.addVolume(answering(source, alive, this.#patience.stallMs), fileName, {
        ...options,
        ...watched,
      }),
    );
  }

  addIncrement(
    source: VolumeSource,
    increment: Increment,
    fileName: string,
    options: AddOptions = {},
  ): Promise<FileDigest> {
    return this.#moving(`storing ${fileName}`, options, (watched, alive) =>
      this.#writer.addIncrement(answering(source, alive, this.#patience.stallMs), increment, fileName, {
        ...options,
        ...watched,
      }),
    );
  }

  flush({ signal }: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
    const flush = (watch: Watch): Promise<void> => this.#writer.flush({ signal: watch.signalWith(signal) });
    return withDeadline(this.#storage, 'bringing it to the disk', this.#patience.stallMs, flush, this.#hold);
  }

  commit(manifest: Manifest, onProgress?: () => void): Promise<BackupEntry> {
    return withDeadline(this.#storage, 'the commit', this.#patience.stallMs, (watch) =>
      this.#writer.commit(manifest, () => {
        watch.alive();
        onProgress?.();
      }),
    );
  }

  suspend(): Promise<void> {
    return withDeadline(this.#storage, 'ending an attempt', this.#patience.stallMs, () =>
      this.#writer.suspend(),
    );
  }

  abandon(): Promise<void> {
    return withDeadline(this.#storage, 'removing unfinished work', this.#patience.stallMs, () =>
      this.#writer.abandon(),
    );
  }

  #moving<T>(
    what: string,
    options: ReadOptions,
    operation: (watched: Pick<ReadOptions, 'signal' | 'onProgress'>, alive: () => void) => Promise<T>,
  ): Promise<T> {
    const move = (watch: Watch): Promise<T> =>
      operation(
        {
          signal: watch.signalWith(options.signal),
          onProgress: (bytesDone) => {
            watch.alive();
            options.onProgress?.(bytesDone);
          },
        },
        () => watch.alive(),
      );
    return withDeadline(this.#storage, what, this.#patience.stallMs, move, this.#hold);
  }
}

/**
 * A source that counts as a sign of life for as long as it is asked: a storage is not to blame for a source that is slow,
 * or that has it wait until other storages have caught up. Whoever made the source bounds it. A storage that hangs gets
 * no more than the few blocks that are read ahead.
 */
function answering(source: VolumeSource, alive: () => void, stallMs: number): VolumeSource {
  const asked = async <T>(answer: Promise<T>): Promise<T> => {
    // An answer that never comes must not keep a process from ending.
    const waiting = setInterval(alive, Math.min(aliveMs, stallMs / 3)).unref();
    try {
      return await answer;
    } finally {
      clearInterval(waiting);
      alive();
    }
  };
  return {
    virtualSizeBytes: source.virtualSizeBytes,
    extents: (signal) => asked(source.extents(signal)),
    readInto: (target, offsetBytes, signal) => asked(source.readInto(target, offsetBytes, signal)),
  };
}
