import type { FileDigest } from '../../common/copy.ts';
import { messageOf } from '../../common/errors.ts';
import type { Throttle } from '../../common/throttle.ts';
import { dataBytesOf, type VolumeSource } from '../../common/volumeSource.ts';
import { StorageError } from '../errors.ts';
import type { Manifest } from '../manifest.ts';
import type { AddOptions, BackupEntry, BackupWriter, Increment } from '../storage.ts';
import type { ContentReference } from '../repository/backupManifest.ts';
import { readManifest } from '../repository/backups.ts';
import { RepositoryError } from '../repository/errors.ts';
import { FileSource } from './fileSource.ts';
import { toBackupManifest } from './manifestTranslation.ts';
import { MeteredSource } from './meteredSource.ts';
import type { Repository } from '../repository/repository.ts';
import type { RepositorySession } from '../repository/session.ts';
import type { StreamReader } from '../repository/streamReader.ts';
import { type StreamOptions, writeStream } from '../repository/streamWriter.ts';

export interface RepositoryWriterOptions {
  /** What was committed. */
  readonly entryOf: (backupId: string) => Promise<BackupEntry>;
  /** Everything that was added so far is stored, and known to others. */
  readonly onFlushed: () => void;
  /** Passed before each read of a source. */
  readonly throttle?: Throttle | undefined;
}

/** A backup that is written into a repository: what other storages keep as files are streams of chunks there. */
export class RepositoryBackupWriter implements BackupWriter {
  readonly directory = null;
  readonly #repository: Repository;
  readonly #session: RepositorySession;
  readonly #options: RepositoryWriterOptions;

  constructor(repository: Repository, session: RepositorySession, options: RepositoryWriterOptions) {
    this.#repository = repository;
    this.#session = session;
    this.#options = options;
  }

  get readUnitBytes(): number {
    return this.#repository.config.chunkSizeBytes;
  }

  /** Nothing has a name before the commit. */
  has(): Promise<boolean> {
    return Promise.resolve(false);
  }

  addByRename(from: string): Promise<FileDigest> {
    return Promise.reject(
      new StorageError('CROSS_FILE_SYSTEM', `${from} cannot be moved into a repository, only copied`),
    );
  }

  async addByCopy(from: string, _fileName: string, options: AddOptions = {}): Promise<FileDigest> {
    await using source = await FileSource.open(from);
    return await this.#add(source, options);
  }

  addVolume(source: VolumeSource, _fileName: string, options: AddOptions = {}): Promise<FileDigest> {
    return this.#add(source, options);
  }

  async addIncrement(
    source: VolumeSource,
    { parent, changes }: Increment,
    _fileName: string,
    options: AddOptions = {},
  ): Promise<FileDigest> {
    const stream = await this.#parentOf(parent, source.virtualSizeBytes, options);
    return this.#add(source, options, { parent: stream, changes });
  }

  async #add(
    source: VolumeSource,
    options: AddOptions,
    increment?: StreamOptions['increment'],
  ): Promise<FileDigest> {
    const { chunkSizeBytes } = this.#repository.config;
    const { signal } = options;
    const metered = new MeteredSource(source, { ...options, throttle: this.#options.throttle });
    const { root } = await writeStream(metered, this.#session, { chunkSizeBytes, signal, increment });
    return { sizeBytes: await dataBytesOf(metered, signal), sha256: root };
  }

  /** @throws StorageError PARENT_UNUSABLE */
  async #parentOf(
    { backupId, target }: Increment['parent'],
    sizeBytes: number,
    { signal, onProgress }: AddOptions,
  ): Promise<StreamReader> {
    const unusable = (why: string, cause?: unknown): StorageError =>
      new StorageError('PARENT_UNUSABLE', `${target} of backup ${backupId} cannot be built on: ${why}`, {
        cause,
      });
    try {
      const manifest = await readManifest(this.#repository.context, backupId, { signal });
      const content = manifest?.volumes.find((volume) => volume.target === target)?.content;
      if (content === undefined) throw unusable('it is not there any more');
      if (content.sizeBytes !== sizeBytes) throw unusable(`it has ${content.sizeBytes} bytes`);
      if (content.chunkSizeBytes !== this.#repository.config.chunkSizeBytes)
        throw unusable('it has chunks of another size');
      const stream = await this.#repository.openStream(content, { signal });
      // Nobody reads its data again: an increment would be as damaged as its parent.
      if (!(await this.#session.holds(content, { signal, onLook: () => onProgress?.(0) })))
        throw unusable('some of its data is damaged or gone');
      return stream;
    } catch (error) {
      if (error instanceof RepositoryError) throw unusable(messageOf(error), error);
      throw error;
    }
  }

  async flush(options: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
    await this.#session.flush(options);
    this.#options.onFlushed();
  }

  async commit(manifest: Manifest, onProgress?: () => void): Promise<BackupEntry> {
    await this.#session.flush();
    const described = await toBackupManifest(manifest, (root) => this.#repository.contentOf(root));
    for (const volume of described.volumes)
      volume.storedBytes = await this.#storedBytes(volume.content, onProgress);
    await this.#session.commit(described, { onLook: onProgress });
    return this.#options.entryOf(manifest.id);
  }

  /** What a restore writes: of a chunk that is not all zeros, all of it. */
  async #storedBytes(content: ContentReference, onProgress?: () => void): Promise<number> {
    onProgress?.();
    return dataBytesOf(await this.#repository.openStream(content));
  }

  /** The fence is what lets collections go on; this backup can be begun once more behind it. */
  async suspend(): Promise<void> {
    await this.#session.suspend();
  }

  async abandon(): Promise<void> {
    await this.#session.abandon();
  }
}
