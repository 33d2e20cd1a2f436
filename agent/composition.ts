import type { BackupEntry, Storage } from '../storage/storage.ts';
import type { AgentParts } from './agent.ts';
import { AgentError } from './errors.ts';
import { jobFates } from './jobFates.ts';
import { JobKinds } from './jobKinds.ts';
import type { MachineLimits } from './machineLimits.ts';
import { PolicyReplication } from './policyReplication.ts';
import { Pruner } from './pruning.ts';
import { Repositories } from './repositories.ts';
import { StoredBackups } from './storedBackups.ts';

/**
 * What an agent is made of under one configuration. An agent that follows its configuration gets another one, and what
 * was begun with this one keeps it to its end.
 */
export class Composition {
  readonly parts: AgentParts;
  readonly backups: StoredBackups;
  readonly repositories: Repositories;
  readonly kinds: JobKinds;
  readonly replications: PolicyReplication;
  readonly pruner: Pruner;

  /** @param deleteBackup refuses what somebody reads */
  constructor(
    parts: AgentParts,
    limits: MachineLimits,
    deleteBackup: (entry: BackupEntry, from: Storage) => Promise<void>,
  ) {
    this.parts = parts;
    this.backups = new StoredBackups(parts);
    this.repositories = new Repositories(parts.config, parts.configPath, jobFates(parts.journal));
    this.kinds = new JobKinds(parts, limits, (name) => this.storage(name));
    this.replications = new PolicyReplication(parts, this.kinds);
    this.pruner = new Pruner(parts, (entry) => deleteBackup(entry, this.storage(entry.storage)));
  }

  /** A configured storage. @throws AgentError STORAGE_NOT_CONFIGURED */
  storage(name: string): Storage {
    const { storages, config, configPath } = this.parts;
    const storage = storages.get(name);
    if (storage !== undefined) return storage;
    const known = [...storages.keys(), ...Object.keys(config.storageGroups)].join(', ');
    throw new AgentError('STORAGE_NOT_CONFIGURED', `there is no storage "${name}" in ${configPath}`, {
      hint: `configured: ${known || 'none'}`,
    });
  }
}
