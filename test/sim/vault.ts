import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Backend, CallOptions, ListedObject, ReadOptions } from '../../storage/backends/backend.ts';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { StorageError } from '../../storage/errors.ts';
import { makeKeyFile, readKeyFile } from '../../storage/repository/keyFile.ts';
import { Repository } from '../../storage/repository/repository.ts';
import { quotaBackendOf } from '../../agent/storages.ts';
import { fileSystemSpace, noBounds } from '../../storage/space.ts';
import { RepositoryStorage } from '../../storage/repositoryStorage/repositoryStorage.ts';
import { keepSecret } from '../secrets.ts';

/** Small, so that the small volumes of a site have several of both. */
const chunkSizeBytes = 64 * 1024;
const packSizeBytes = 256 * 1024;

/** What keeps a vault from answering: its server is gone, or it takes nothing more. */
export type VaultFault = 'away' | 'full';

/** Who hears of every call to a vault, before and after it, and may let it fail. */
export type VaultListener = (moment: string) => Promise<void> | void;

/** A repository of a site: a storage that keeps no files that a machine could stand on. */
export class Vault {
  readonly directory: string;
  readonly keyFile: string;
  /** What is wrong with it now. */
  fault: VaultFault | null = null;

  private constructor(root: string) {
    this.directory = join(root, 'store');
    this.keyFile = join(root, 'key');
  }

  /** Makes an empty one below a directory that is not there yet. */
  static async create(root: string): Promise<Vault> {
    const vault = new Vault(root);
    await mkdir(vault.directory, { recursive: true });
    const secret = await makeKeyFile(vault.keyFile);
    if (secret === null) throw new Error(`there is a key at ${vault.keyFile}`);
    keepSecret('repository key', (await readFile(vault.keyFile, 'utf8')).trim().slice(0, 64));
    await Repository.init(new FileBackend(vault.directory), {
      secret,
      label: 'site',
      createdAt: new Date().toISOString(),
      chunkSizeBytes,
      packSizeBytes,
    });
    return vault;
  }

  /** What the configuration of an agent says of it. */
  get settings(): { readonly kind: 'repository'; readonly url: string; readonly keyFile: string } {
    return { kind: 'repository', url: `file://${this.directory}`, keyFile: this.keyFile };
  }

  /** Opens it anew, as another process would; nothing is known of what others knew. */
  async repository(listener?: VaultListener, bounds = noBounds): Promise<Repository> {
    const backend = quotaBackendOf('vault', new VaultBackend(this, listener), bounds);
    return Repository.open(backend, await readKeyFile(this.keyFile));
  }

  /** As a storage; opened when something of it is needed. */
  storage(name: string, listener?: VaultListener, bounds = noBounds): RepositoryStorage {
    return new RepositoryStorage({
      name,
      location: this.directory,
      bounds,
      open: () => this.repository(listener, bounds),
      room: () => fileSystemSpace(this.directory),
    });
  }
}

/** Objects in files, behind a connection that fails when the vault has a fault. */
class VaultBackend implements Backend {
  readonly location: string;
  readonly objectLock = null;
  readonly #files: FileBackend;
  readonly #vault: Vault;
  readonly #listener: VaultListener;

  constructor(vault: Vault, listener: VaultListener = () => undefined) {
    this.#vault = vault;
    this.#listener = listener;
    this.#files = new FileBackend(vault.directory);
    this.location = vault.directory;
  }

  create(name: string, parts: readonly Buffer[], options?: CallOptions): Promise<'created' | 'exists'> {
    return this.#change('create', name, () => this.#files.create(name, parts, options));
  }

  delete(name: string, options?: CallOptions): Promise<void> {
    return this.#change('delete', name, () => this.#files.delete(name, options));
  }

  async createsExclusively(): Promise<boolean> {
    this.#requireThere();
    return this.#files.createsExclusively();
  }

  async read(name: string, options?: ReadOptions): Promise<Buffer | null> {
    this.#requireThere();
    return this.#files.read(name, options);
  }

  async size(name: string, options?: CallOptions): Promise<number | null> {
    this.#requireThere();
    return this.#files.size(name, options);
  }

  async *list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    this.#requireThere();
    yield* this.#files.list(prefix, options);
  }

  /** A moment is called after the kind of object: `vault/before:create manifests`. */
  async #change<T>(call: 'create' | 'delete', name: string, act: () => Promise<T>): Promise<T> {
    const what = `${call} ${name.split('/')[0]}`;
    await this.#listener(`vault/before:${what}`);
    this.#requireThere();
    if (call === 'create' && this.#vault.fault === 'full')
      throw new StorageError('STORAGE_FULL', 'the vault is full', { retryable: true });
    const result = await act();
    await this.#listener(`vault/after:${what}`);
    return result;
  }

  #requireThere(): void {
    if (this.#vault.fault === 'away')
      throw new StorageError('STORAGE_UNREACHABLE', 'the vault is away', { retryable: true });
  }
}
