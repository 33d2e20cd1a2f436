import type { Config } from '../config/schema.ts';
import type { Backend } from '../storage/backends/backend.ts';
import { DeadlineBackend } from '../storage/backends/deadlineBackend.ts';
import { FileBackend } from '../storage/backends/fileBackend.ts';
import { readKeyFile } from '../storage/repository/keyFile.ts';
import { Repository } from '../storage/repository/repository.ts';
import { AgentError } from './errors.ts';
import { backendOf, openOptionsOf, type RepositoryConfig } from './storages.ts';

/** A repository that was opened with the key file of this host. */
export interface OpenRepository {
  readonly repository: Repository;
  readonly settings: RepositoryConfig;
}

/** Where the repositories of a host are, and how they are opened. */
export class RepositoryPlaces {
  readonly #config: Config;
  readonly #configPath: string;

  constructor(config: Config, configPath: string) {
    this.#config = config;
    this.#configPath = configPath;
  }

  /** @throws AgentError STORAGE_NOT_CONFIGURED, STORAGE_UNSUITABLE */
  settings(name: string): RepositoryConfig {
    const settings = this.#config.storages[name];
    if (settings === undefined)
      throw new AgentError('STORAGE_NOT_CONFIGURED', `there is no storage "${name}" in ${this.#configPath}`, {
        hint: `configured: ${Object.keys(this.#config.storages).join(', ') || 'none'}`,
      });
    if (settings.kind === 'repository') return settings;
    throw new AgentError('STORAGE_UNSUITABLE', `storage ${name} is a directory, not a repository`, {
      hint: 'a directory needs no such thing: stillpoint list, stillpoint verify --all, stillpoint prune',
    });
  }

  /** A mount whose server is gone must not hold a command for ever, which could not even be interrupted. */
  async backend(name: string, { make = false }: { readonly make?: boolean } = {}): Promise<Backend> {
    const settings = this.settings(name);
    const backend = await backendOf(name, settings);
    if (make && backend instanceof FileBackend) await backend.prepare();
    return new DeadlineBackend(name, backend, settings.stallSeconds * 1000);
  }

  /** @throws RepositoryError, StorageError */
  async open(name: string): Promise<OpenRepository> {
    const settings = this.settings(name);
    const secret = await readKeyFile(settings.keyFile, name);
    const backend = await this.backend(name);
    return { repository: await Repository.open(backend, secret, openOptionsOf(name, settings)), settings };
  }
}
