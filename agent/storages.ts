import type { Config, StorageConfig } from '../config/schema.ts';
import type { Bandwidth } from '../common/bandwidth.ts';
import type { Backend } from '../storage/backends/backend.ts';
import { BandwidthBackend } from '../storage/backends/bandwidthBackend.ts';
import { FileBackend } from '../storage/backends/fileBackend.ts';
import { QuotaBackend } from '../storage/backends/quotaBackend.ts';
import { DeadlineStorage } from '../storage/deadlines.ts';
import { DirectoryStorage } from '../storage/directory/directoryStorage.ts';
import { exists } from '../common/files.ts';
import { readConfig } from '../storage/repository/configCopies.ts';
import { RepositoryError } from '../storage/repository/errors.ts';
import { prefixes } from '../storage/repository/names.ts';
import { type OpenOptions, Repository } from '../storage/repository/repository.ts';
import { RepositoryStorage } from '../storage/repositoryStorage/repositoryStorage.ts';
import { type Retention, retentionOfDays } from '../storage/repository/retention.ts';
import { readKeyFile } from '../storage/repository/keyFile.ts';
import { storedBytesOf } from '../storage/repository/storedBytes.ts';
import { Quota, quotaHint } from '../storage/quota.ts';
import { fileSystemSpace, type StorageBounds } from '../storage/space.ts';
import type { JobFate } from '../storage/repository/leftSessions.ts';
import type { Storage } from '../storage/storage.ts';
import { StorageBandwidths } from './storageBandwidths.ts';

/** A repository as the configuration names it. */
export type RepositoryConfig = Extract<StorageConfig, { readonly kind: 'repository' }>;

/** Storages, and the configuration that they were made of. */
export interface MadeStorages {
  readonly config: Config;
  readonly storages: ReadonlyMap<string, Storage>;
}

/**
 * The storages of a configuration, by name; nothing is opened yet.
 * @param fateOf what this host knows of its jobs
 * @param before those of another configuration: what means the same in both is not made a second time
 */
export function storagesOf(
  config: Config,
  bandwidths = new StorageBandwidths(config),
  fateOf?: (jobId: string) => JobFate,
  before?: MadeStorages,
): ReadonlyMap<string, Storage> {
  return new Map(
    Object.entries(config.storages).map(([name, settings]) => {
      const known = before?.storages.get(name);
      const settingsBefore = before?.config.storages[name];
      if (known !== undefined && settingsBefore !== undefined && isSamePlace(settings, settingsBefore))
        return [name, known];
      const { stallSeconds } = settings;
      const patience = { answerMs: Math.min(stallSeconds, 30) * 1000, stallMs: stallSeconds * 1000 };
      const bandwidth = bandwidths.of(name);
      const storage =
        settings.kind === 'directory'
          ? new DirectoryStorage({ name, path: settings.path, bounds: boundsOf(settings), bandwidth })
          : repositoryOf(name, settings, { bandwidth, fateOf });
      return [name, new DeadlineStorage(storage, patience)];
    }),
  );
}

/** The same storage: what else is in its settings is looked at whenever it is needed. */
function isSamePlace(a: StorageConfig, b: StorageConfig): boolean {
  const made = (settings: StorageConfig): string =>
    JSON.stringify({ ...settings, maxParallelMachines: undefined, bandwidthBytesPerSecond: undefined });
  return made(a) === made(b);
}

function repositoryOf(
  name: string,
  settings: RepositoryConfig,
  {
    bandwidth,
    fateOf,
  }: { readonly bandwidth: Bandwidth; readonly fateOf: ((jobId: string) => JobFate) | undefined },
): RepositoryStorage {
  const path = pathOf(settings);
  return new RepositoryStorage({
    name,
    location: path ?? settings.url,
    bounds: boundsOf(settings),
    fateOf,
    open: async () => {
      const limited = new BandwidthBackend(await backendOf(name, settings), bandwidth);
      const backend = quotaBackendOf(name, limited, boundsOf(settings));
      const { keyFile } = settings;
      // Of a repository that was not made yet there is no key file either, and the key is not what is wrong.
      if (!(await exists(keyFile))) {
        const isPlaceMissing = path !== null && !(await exists(path));
        if (isPlaceMissing || (await readConfig(backend, {})).length === 0)
          throw notMadeError(name, backend.location);
      }
      return Repository.open(backend, await readKeyFile(keyFile, name), openOptionsOf(name, settings));
    },
    directory: path,
    room: async () => (path === null ? null : fileSystemSpace(path)),
    removeLeftovers: async () =>
      path === null ? 0 : new FileBackend(path).removeLeftovers(new Date(Date.now() - leftoverMs)),
  });
}

function notMadeError(name: string, location: string): RepositoryError {
  return new RepositoryError('REPOSITORY_NOT_FOUND', `there is no repository at ${location} yet`, {
    hint: `stillpoint storage init ${name}; if it was made already, look whether ${location} is mounted`,
  });
}

/** How a repository is opened by whoever may write into it. */
export function openOptionsOf(
  name: string,
  settings: RepositoryConfig,
): Pick<OpenOptions, 'retention' | 'compressionLevel' | 'storage'> {
  const { compressionLevel } = settings;
  return { retention: retentionOf(settings), compressionLevel, storage: name };
}

/** How long backups are to be locked; `undefined`: not at all. */
export function retentionOf({ objectLock }: RepositoryConfig): Retention | undefined {
  return objectLock === undefined ? undefined : retentionOfDays(objectLock.days);
}

/** What the configuration allows a storage. */
function boundsOf({ quota, warnPercent }: StorageConfig): StorageBounds {
  return { quotaBytes: quota ?? null, warnPercent };
}

/** The place of a repository as who writes backups into it sees it: within the quota. */
export function quotaBackendOf(name: string, backend: Backend, { quotaBytes }: StorageBounds): Backend {
  if (quotaBytes === null) return backend;
  const hint = quotaHint(name, 'repository');
  const quota = new Quota({ name, quotaBytes, hint, measure: () => storedBytesOf(backend) });
  return new QuotaBackend(backend, prefixes.packs, (sizeBytes, make) => quota.during(sizeBytes, make));
}

/** Opens it to read, without a limit to its bandwidth: a machine may run on it. @throws RepositoryError, StorageError */
export async function openRepository(name: string, settings: RepositoryConfig): Promise<Repository> {
  const secret = await readKeyFile(settings.keyFile, name);
  const repository = await Repository.open(await backendOf(name, settings), secret, { storage: name });
  repository.context.keys.requireReading(name);
  return repository;
}

/** Nobody needs so long to write one file. */
const leftoverMs = 24 * 3600 * 1000;

/** Enough for the records of thousands of deletions and a collection. */
const reserveBytesMax = 64 * 1024 * 1024;

/** The place of a repository. @throws StorageError STORAGE_SETTINGS_INVALID */
export async function backendOf(name: string, settings: RepositoryConfig): Promise<Backend> {
  const path = pathOf(settings);
  if (path !== null) {
    const hint = `stillpoint delete BACKUP, then stillpoint storage gc ${name}; or make the file system larger`;
    return new FileBackend(path, {
      reserve: { notForPrefix: prefixes.packs, bytesMax: reserveBytesMax, hint },
    });
  }
  // Only who has such a storage pays for loading it.
  const { openS3Backend } = await import('../storage/backends/openS3.ts');
  return openS3Backend(settings);
}

/** The directory of a repository that is one. */
export function pathOf({ url }: Pick<RepositoryConfig, 'url'>): string | null {
  return url.startsWith('file://') ? url.slice('file://'.length) : null;
}
