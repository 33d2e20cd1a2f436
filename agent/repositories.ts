import { rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { exists } from '../common/files.ts';
import type { Config } from '../config/schema.ts';
import type { DisplacedObject } from '../storage/backends/objectLock.ts';
import { quarantineFound } from '../storage/repository/condemned.ts';
import { type CollectionReport, collectGarbage } from '../storage/repository/collection.ts';
import { displacedObjects } from '../storage/repository/displaced.ts';
import { makeKeyFile, readKeyFile } from '../storage/repository/keyFile.ts';
import { packIdOf, prefixes } from '../storage/repository/names.ts';
import { endSession, isLeft, type JobFate } from '../storage/repository/leftSessions.ts';
import { openSessions } from '../storage/repository/openSessions.ts';
import { rebuildIndex, type RebuildReport } from '../storage/repository/rebuild.ts';
import { type RepairOptions, type RepairReport, repairRepository } from '../storage/repository/repair.ts';
import { RepositoryError, type RepositoryErrorCode } from '../storage/repository/errors.ts';
import { Repository } from '../storage/repository/repository.ts';
import {
  type PackProblem,
  type RepositoryReport,
  verifyRepository,
} from '../storage/repository/verifyRepository.ts';
import { lookAtLock, type LockReport, repairWithLock } from './repositoryLock.ts';
import { addRecoveryKey, keyFileLabel, RepositoryKeys } from './repositoryKeys.ts';
import { RepositoryPlaces } from './repositoryPlaces.ts';
import { retentionOf } from './storages.ts';

export type { RepairAction } from '../storage/repository/repairSteps.ts';
export type { RepairReport } from '../storage/repository/repair.ts';

/** A repository that was made. */
export interface MadeRepository {
  readonly location: string;
  readonly keyFile: string;
  readonly keyFileMade: boolean;
  /** To be printed and put away: it is shown this once. */
  readonly recoveryKey: string | null;
  /** So many days nobody can delete a backup there; `null`: its backups are not locked. */
  readonly lockedDays: number | null;
}

/** What a repository is made of. */
export interface RepositoryContents {
  /** What the key of this host may do. */
  readonly access: 'all' | 'write only';
  readonly createdAt: string;
  readonly packs: number;
  /** Packs that no index names: what is in them is not known, only how large they are. */
  readonly unindexedPacks: number;
  /** Distinct chunks of backups, those included that no backup needs any more; `null` while packs are not indexed. */
  readonly chunks: number | null;
  /** What these were before compression; `null` as above. */
  readonly chunkBytes: number | null;
  /** What the packs take that hold them. */
  readonly chunkPackBytes: number;
  readonly openSessions: number;
}

/** How the making of a repository fails before anything of it is there. */
const unusedKeyCodes: ReadonlySet<string> = new Set<RepositoryErrorCode>([
  'REPOSITORY_EXISTS',
  'OBJECT_LOCK_NOT_ENFORCED',
]);

/** The storages of a host that are repositories: making them, looking at them, keeping them in order. */
export class Repositories {
  readonly keys: RepositoryKeys;
  readonly #places: RepositoryPlaces;
  readonly #fateOf: (jobId: string) => JobFate;

  /** @param fateOf what this host knows of its jobs */
  constructor(config: Config, configPath: string, fateOf: (jobId: string) => JobFate = () => 'unknown') {
    this.#fateOf = fateOf;
    this.#places = new RepositoryPlaces(config, configPath);
    this.keys = new RepositoryKeys(this.#places);
  }

  /**
   * Makes the repository of a storage, and its key file where that is not there.
   * @throws RepositoryError REPOSITORY_EXISTS, KEY_WRONG, OBJECT_LOCK_NOT_ENFORCED; StorageError
   */
  async init(name: string, options: { readonly recoveryKey: boolean }): Promise<MadeRepository> {
    const settings = this.#places.settings(name);
    const backend = await this.#places.backend(name, { make: true });
    const { keyFile } = settings;
    const made = (await exists(keyFile)) ? null : await makeKeyFile(keyFile);
    const createdAt = new Date().toISOString();
    try {
      const secret = made ?? (await readKeyFile(keyFile, name));
      const repository = await Repository.init(backend, {
        secret,
        label: keyFileLabel(),
        createdAt,
        retention: retentionOf(settings),
      });
      return {
        location: backend.location,
        keyFile,
        keyFileMade: made !== null,
        recoveryKey: options.recoveryKey ? await addRecoveryKey(repository, createdAt) : null,
        lockedDays: settings.objectLock?.days ?? null,
      };
    } catch (error) {
      // It opens nothing, and would stand in the way of the right one. After any other failure there may be a repository
      // that only this key opens.
      const isUnused = error instanceof RepositoryError && unusedKeyCodes.has(error.code);
      if (made !== null && isUnused) await rm(keyFile, { force: true });
      throw error;
    }
  }

  /** What a repository is made of. @throws RepositoryError, StorageError */
  async contents(name: string): Promise<RepositoryContents> {
    const { repository } = await this.#places.open(name);
    const { context, config } = repository;
    const index = await repository.index();
    let packs = 0;
    let unindexedPacks = 0;
    for await (const object of context.backend.list(prefixes.packs)) {
      const id = packIdOf(object.name);
      if (id === null) continue;
      packs++;
      if (!index.knows(id)) unindexedPacks++;
    }
    const isKnown = unindexedPacks === 0;
    let chunkBytes = 0;
    for (const { pack, entry } of index.places())
      if (index.pack(pack).kind === 'data') chunkBytes += entry.rawBytes;
    return {
      access: context.keys.isWriter ? 'write only' : 'all',
      createdAt: config.createdAt,
      packs,
      unindexedPacks,
      chunks: isKnown ? index.chunkCount : null,
      chunkBytes: isKnown ? chunkBytes : null,
      chunkPackBytes: index.packs.reduce(
        (sum, { kind, sizeBytes }) => sum + (kind === 'data' ? sizeBytes : 0),
        0,
      ),
      openSessions: (await openSessions(context)).length,
    };
  }

  /**
   * Frees what no backup needs. Backups that this host has begun, and that nobody goes on with, are given up.
   * @param options.fence what becomes of backups that were begun and not ended
   * @throws RepositoryError COLLECTION_UNSAFE, …
   */
  async collect(
    name: string,
    options: {
      readonly fence: boolean;
      readonly repackBelow: number;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<CollectionReport> {
    const { repository } = await this.#places.open(name);
    const left = (await openSessions(repository.context, options)).filter((session) =>
      isLeft(session, this.#fateOf),
    );
    for (const session of left) await endSession(repository.context, session, options);
    const report = await collectGarbage(repository, {
      collector: { host: hostname(), at: new Date().toISOString() },
      repackBelow: options.repackBelow,
      signal: options.signal,
      onOpenSession: () => Promise.resolve(options.fence ? 'fence' : 'leave'),
    });
    return {
      ...report,
      fencedBackups: [...left.map(({ backupId }) => backupId), ...report.fencedBackups],
    };
  }

  /** Checks every backup of a repository. Nothing in a damaged pack is reused afterwards, unless it is only looked at. */
  async verify(
    name: string,
    options: {
      readonly data: boolean;
      /** Write nothing there. */
      readonly readOnly?: boolean | undefined;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<RepositoryReport> {
    const { repository } = await this.#places.open(name);
    const { context } = repository;
    const note = { onDamagedPack: (problem: PackProblem) => quarantineFound(context, problem) };
    return verifyRepository(context, await repository.index(options), {
      ...options,
      ...(options.readOnly === true ? {} : note),
    });
  }

  /**
   * What was stored under retention and was deleted or overwritten since; nothing where nothing is locked. Needs no key
   * on a host that locks itself.
   */
  async displaced(
    name: string,
    options: { readonly signal?: AbortSignal | undefined },
  ): Promise<readonly DisplacedObject[]> {
    if (!(await this.#isLocked(name))) return [];
    return displacedObjects(await this.#places.backend(name), options);
  }

  /** Looks once more whether backups are locked as the configuration wants it; `null` where it does not. */
  async lock(
    name: string,
    options: { readonly signal?: AbortSignal | undefined },
  ): Promise<LockReport | null> {
    const { repository, settings } = await this.#places.open(name);
    return settings.objectLock === undefined ? null : lookAtLock(repository, options);
  }

  /** In what the configuration of this host and that of the repository do not fit together, for people. */
  async differences(name: string): Promise<readonly string[]> {
    const { repository, settings } = await this.#places.open(name);
    const isLocked = repository.config.capabilities.objectLock === true;
    if (isLocked && settings.objectLock === undefined)
      return ['backups there are locked, and what this host writes would not be: set objectLock for it'];
    if (!isLocked && settings.objectLock !== undefined)
      return [`backups there were not locked so far: stillpoint storage check ${name}, before the next one`];
    return [];
  }

  /** Puts a damaged repository in order, or says what that would be. @throws RepositoryError, StorageError */
  async repair(
    name: string,
    options: Pick<RepairOptions, 'data' | 'apply' | 'isAlone' | 'signal'>,
  ): Promise<RepairReport> {
    const repair = async (): Promise<RepairReport> => {
      const { repository } = await this.#places.open(name);
      const { packSizeBytes } = repository.config;
      return repairRepository(repository, { ...options, at: new Date().toISOString(), packSizeBytes });
    };
    if (!(await this.#isLocked(name))) return repair();
    return repairWithLock(await this.#places.backend(name), { ...options, repair });
  }

  /** Makes index objects for packs that none names. */
  async rebuildIndex(name: string, options: { readonly dryRun: boolean }): Promise<RebuildReport> {
    const { repository } = await this.#places.open(name);
    return rebuildIndex(repository.context, options);
  }

  /** Other hosts may lock what this one does not; where it does itself, nothing need be opened to know. */
  async #isLocked(name: string): Promise<boolean> {
    if (this.#places.settings(name).objectLock !== undefined) return true;
    return (await this.#places.open(name)).repository.config.capabilities.objectLock === true;
  }
}
