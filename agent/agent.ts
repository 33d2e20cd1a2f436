import { dirname, resolve } from 'node:path';
import type { PushedStatus } from '../config/config.ts';
import { membersOf } from '../config/storageGroups.ts';
import { type Config, emptyPolicy } from '../config/schema.ts';
import { newId } from '../common/ids.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import { type BackupFacts, backupFactsSchema } from './backup/facts.ts';
import { type LiveFacts, liveFactsSchema } from './backup/liveFacts.ts';
import { type ReadFacts, readFactsSchema } from './backup/readFacts.ts';
import { type BackupPlan, planBackup } from './backupPlan.ts';
import { Composition } from './composition.ts';
import { type BackupRequest, decideBackup, type DecidedBackup, groupOf } from './backupRequests.ts';
import type { HypervisorErrorCode } from './hypervisor/errors.ts';
import type { Hypervisor } from './hypervisor/hypervisor.ts';
import type { Engine } from './jobs/engine.ts';
import { asStillpointError } from './jobs/stepErrors.ts';
import { JobError } from './jobs/errors.ts';
import type { JobRow } from './jobs/job.ts';
import type { Journal } from './jobs/journal.ts';
import { errorRecord } from '../common/errors.ts';
import { currentBootId } from './jobs/owner.ts';
import type { ScheduledJob } from './jobs/scheduleRows.ts';
import { waitForTurn } from './jobs/turns.ts';
import { findWorkDirectories, type WorkDirectory } from './leftovers.ts';
import { LookedBackups } from './lookedBackups.ts';
import { bootFactsSchema, type BootPlan, type BootRequest, planBoot } from './restore/bootPlan.ts';
import type { RestoreErrorCode } from './restore/errors.ts';
import { type RestoreFacts, restoreFactsSchema, type RestorePlan } from './restore/plan.ts';
import { planRestore } from './restore/planner.ts';
import type { RestoreRequest } from './restore/request.ts';
import type { StorageChoice } from './retain/storageChoice.ts';
import { requireUsable } from './retain/storageRoom.ts';
import type { SnapshotErrorCode } from './snapshot/errors.ts';
import { Together } from './snapshot/together.ts';
import type { JobKinds } from './jobKinds.ts';
import { MachineLimits } from './machineLimits.ts';
import type { PolicyReplication } from './policyReplication.ts';
import { requireNotCopied } from './replicationJob.ts';
import type { Pruner } from './pruning.ts';
import type { Repositories } from './repositories.ts';
import { insteadOfFailed } from './insteadOfFailed.ts';
import { chooseMember } from './storageGroups.ts';
import { type StorageUsage, usageOf } from './storageUsage.ts';
import type { StoredBackups } from './storedBackups.ts';

/** What a job is parked with when libvirt was away for long, or an operation of it failed. */
const retriedCodes: ReadonlySet<string> = new Set<HypervisorErrorCode | RestoreErrorCode | SnapshotErrorCode>(
  [
    'HYPERVISOR_UNREACHABLE',
    'DEADLINE_EXCEEDED',
    'MACHINE_LOCKED',
    'OPERATION_FAILED',
    // The machine is down.
    'CANNOT_START_MACHINE',
    'CANNOT_PUT_BACK',
    // The guest's writes wait.
    'CANNOT_THAW',
    'GUEST_WITHOUT_ROOM',
  ],
);

/** Where a backup that is started in isolation has its overlays: not on the storage, nor in memory. */
const bootDirectory = '/var/tmp';

/** Without memory it takes a few tenths of a second until all machines of a group have begun. */
const groupBeginMaxMs = 30_000;

/** So long the machines of a group may stand still. */
function groupPauseMaxMs({ record }: JobRow): number {
  return liveFactsSchema.safeParse(record).data?.settings.saveDeadlineMs ?? groupBeginMaxMs;
}

export interface AgentParts {
  readonly config: Config;
  readonly configPath: string;
  readonly hypervisor: Hypervisor;
  readonly journal: Journal;
  readonly engine: Engine;
  readonly storages: ReadonlyMap<string, Storage>;
  /** What of `config` a controller has pushed; nothing unless told. */
  readonly pushed?: PushedStatus | undefined;
  /** Where a backup that is started in isolation has its overlays; `/var/tmp` unless told. */
  readonly bootDirectory?: string | undefined;
  /** Where errors go that end nothing: the log. */
  readonly report: (jobId: string | undefined, error: unknown) => void;
  /** Where goes what is worth a line of the log and nobody's attention. */
  readonly note?: ((about: Readonly<Record<string, unknown>>, message: string) => void) | undefined;
}

/** A storage to write to. */
export interface ChosenStorage {
  readonly storage: Storage;
  /** `null`: it was named itself. */
  readonly choice: StorageChoice | null;
}

/** What the agent of one host can be asked for; the CLI and later the API call this and nothing below it. */
export class Agent {
  readonly looking: LookedBackups;
  readonly #limits: MachineLimits;
  readonly #followers = new Set<() => void>();
  #composition: Composition;

  constructor(parts: AgentParts) {
    this.#limits = new MachineLimits(parts.config);
    this.#composition = this.#compose(parts);
    this.looking = new LookedBackups(parts, (name) => this.storage(name));
  }

  #compose(parts: AgentParts): Composition {
    return new Composition(parts, this.#limits, (entry, from) => this.deleteBackup(entry, from));
  }

  /** What is in force now: read it anew for each thing that begins. */
  get parts(): AgentParts {
    return this.#composition.parts;
  }

  get backups(): StoredBackups {
    return this.#composition.backups;
  }

  get pruner(): Pruner {
    return this.#composition.pruner;
  }

  get repositories(): Repositories {
    return this.#composition.repositories;
  }

  get replications(): PolicyReplication {
    return this.#composition.replications;
  }

  get #kinds(): JobKinds {
    return this.#composition.kinds;
  }

  /**
   * Has everything that begins from now on go by another configuration. What runs keeps the one that it began with, but
   * for the limits of its policy. What an agent has for life (its journal, its libvirt) stays.
   * @returns names of the machines whose running jobs have other limits now
   */
  follow(change: Pick<AgentParts, 'config' | 'storages' | 'pushed'>): readonly string[] {
    const changed = this.followLimits(change.config);
    this.#composition = this.#compose({ ...this.parts, ...change });
    for (const listener of this.#followers) listener();
    return changed;
  }

  /** Holds what runs to the limits of another configuration, and follows nothing else of it. */
  followLimits(config: Config): readonly string[] {
    return this.#limits.follow(config);
  }

  /** Calls `listener` whenever another configuration is in force. @returns what ends that */
  onFollow(listener: () => void): () => void {
    this.#followers.add(listener);
    return () => void this.#followers.delete(listener);
  }

  /** A configured storage. @throws AgentError STORAGE_NOT_CONFIGURED */
  storage(name: string): Storage {
    return this.#composition.storage(name);
  }

  /** The storages that a name stands for: those of a group in their order. @throws AgentError STORAGE_NOT_CONFIGURED */
  storagesOf(name: string): readonly Storage[] {
    return membersOf(this.parts.config, name).map((member) => this.storage(member));
  }

  /**
   * A storage to write to: of a group the first one that can be used.
   * @param taken names of storages that get the same anyway
   * @throws AgentError STORAGE_NOT_CONFIGURED, STORAGE_GROUP_UNUSABLE; StorageError of a storage that cannot be used
   */
  async chooseStorage(name: string, taken: readonly string[] = []): Promise<ChosenStorage> {
    const members = this.storagesOf(name);
    if (this.parts.config.storageGroups[name] !== undefined) {
      const choice = await chooseMember(name, members, new Set(taken), requireUsable);
      return { storage: this.storage(choice.storage), choice };
    }
    const storage = this.storage(name);
    await requireUsable(storage);
    return { storage, choice: null };
  }

  /** What a storage holds. @throws AgentError STORAGE_NOT_CONFIGURED; StorageError, RepositoryError */
  storageUsage(name: string): Promise<StorageUsage> {
    return usageOf(this.storage(name), this.repositories);
  }

  /** What a backup would do, without doing anything. */
  async planBackup(request: BackupRequest): Promise<BackupPlan> {
    return planBackup(await this.#decide(request), {
      ...this.parts,
      storage: (name) => this.storage(name),
      ramDiskReservedBytes: () => this.#kinds.ramDiskReservedBytes(),
    });
  }

  /**
   * Writes a backup job down and takes the machine for it; `run` does it.
   * @param scheduled what becomes of the machine's schedule with that
   * @throws HypervisorError MACHINE_NOT_FOUND; AgentError; ConfigError; JobError MACHINE_BUSY, UNFINISHED_JOB
   */
  async createBackup(request: BackupRequest, scheduled?: ScheduledJob): Promise<JobRow> {
    const { machine, settings } = await this.#decide(request);
    const { uuid: machineUuid, name: machineName } = machine;
    const about = { machineUuid, machineName, state: 'initialized', scheduled } as const;
    const known = { backupId: newId(), machine, bootId: currentBootId(), warnings: [] };
    const { engine } = this.parts;
    if (settings.mode === 'live')
      return engine.create(this.#kinds.live(), { ...about, facts: { ...known, settings } });
    return settings.mode === 'save'
      ? engine.create(this.#kinds.backup(), { ...about, facts: { ...known, settings } })
      : engine.create(this.#kinds.read(), { ...about, facts: { ...known, settings } });
  }

  /** A request with everything decided; its storages exist. */
  async #decide(request: BackupRequest): Promise<DecidedBackup> {
    // One and the same configuration from the first question to the last.
    const composition = this.#composition;
    const storage = (name: string): Storage => composition.storage(name);
    const ramDiskReservedBytes = (): number => composition.kinds.ramDiskReservedBytes();
    return decideBackup(request, { ...composition.parts, storage, ramDiskReservedBytes });
  }

  /**
   * The stored backup that is meant, to be read.
   * @param storage where to look, a storage or a group; unless told everywhere, and where this host can read it
   * @throws StorageError BACKUP_NOT_FOUND, …; AgentError STORAGE_NOT_CONFIGURED
   */
  async findBackup(reference: string, storage: string | undefined): Promise<BackupEntry> {
    if (storage === undefined) return this.backups.findReadable(reference);
    return this.backups.find(
      reference,
      this.storagesOf(storage).map(({ name }) => name),
    );
  }

  /** What a restore would do, and what stands in its way. @throws RestoreError, StorageError */
  async planRestore(
    request: RestoreRequest & { readonly backup: string; readonly storage?: string | undefined },
  ): Promise<RestorePlan> {
    const runDirectory = dirname(this.parts.config.agent.socket);
    const entry = await this.findBackup(request.backup, request.storage);
    const storage = this.storage(entry.storage);
    const config = storage.kind === 'directory' ? null : resolve(this.parts.configPath);
    return planRestore(this.parts.hypervisor, entry, request, { stored: storage, config, runDirectory });
  }

  /**
   * Writes a confirmed restore down and takes the machine for it; `run` does it.
   * @param scheduled the request that it is for
   */
  createRestore(plan: RestorePlan, scheduled?: Pick<ScheduledJob, 'request'>): JobRow {
    const { deadlines } = this.parts.config.policies['default'] ?? emptyPolicy();
    const facts: RestoreFacts = {
      plan,
      restoreDeadlineMs: deadlines.restoreSeconds * 1000,
      pullDeadlineMs: deadlines.mergeSeconds * 1000,
      bootId: currentBootId(),
    };
    return this.parts.engine.create(this.#kinds.restore(), {
      id: plan.jobId,
      // Files alone concern no machine: the job gets a place of its own.
      machineUuid: plan.machine.uuid,
      machineName: plan.machine.name,
      state: 'planned',
      facts,
      scheduled,
    });
  }

  /** Plans to start a backup where it can reach nothing. @throws RestoreError, StorageError */
  async planBoot(
    entry: BackupEntry,
    request: Pick<BootRequest, 'start' | 'expect' | 'deadlineMs'>,
  ): Promise<BootPlan> {
    const runDirectory = dirname(this.parts.config.agent.socket);
    const stored = this.storage(entry.storage);
    return planBoot(entry, {
      ...request,
      stored,
      config: stored.kind === 'directory' ? null : resolve(this.parts.configPath),
      runDirectory,
      workDirectory: this.parts.bootDirectory ?? bootDirectory,
    });
  }

  /** Writes the start of a backup in isolation down; `run` does it, and stores the result beside the backup. */
  createBoot(plan: BootPlan): JobRow {
    const { deadlines } = this.parts.config.policies['default'] ?? emptyPolicy();
    return this.parts.engine.create(this.#kinds.boot(), {
      id: plan.jobId,
      machineUuid: plan.machine.uuid,
      machineName: plan.machine.name,
      state: 'planned',
      facts: { plan, restoreDeadlineMs: deadlines.restoreSeconds * 1000 },
    });
  }

  async #waitForTurn(job: JobRow): Promise<void> {
    const { journal, engine } = this.parts;
    const limitOf = (name: string): number | undefined =>
      this.parts.config.storages[name]?.maxParallelMachines;
    try {
      await waitForTurn(journal, job, limitOf, engine.stopSignal);
    } catch (error) {
      engine.leave(job.id);
      throw error;
    }
  }

  /** What a backup job has found out so far; `undefined` for another kind, and for a record of another version. */
  backupFacts(job: JobRow): BackupFacts | LiveFacts | ReadFacts | undefined {
    if (job.kind !== 'backup') return undefined;
    const schemas = [readFactsSchema, liveFactsSchema, backupFactsSchema] as const;
    for (const schema of schemas) {
      const { data } = schema.safeParse(job.record);
      if (data !== undefined) return data;
    }
    return undefined;
  }

  /**
   * Removes one copy of a backup for good.
   * @param storage which has it: that of another configuration may be another place by the same name
   * @throws StorageError BACKUP_PROTECTED, …; JobError MACHINE_BUSY while a restore reads it; RestoreError MOUNT_BUSY
   */
  async deleteBackup(entry: BackupEntry, storage = this.storage(entry.storage)): Promise<void> {
    for (const job of this.parts.journal.holding()) {
      if (job.kind === 'backup') continue;
      if (job.kind === 'replicate') {
        requireNotCopied(job, entry);
        continue;
      }
      const schema = job.kind === 'restore' ? restoreFactsSchema : bootFactsSchema;
      const facts = schema.safeParse(job.record).data;
      // A record that cannot be read may mean any backup.
      if (facts !== undefined && facts.plan.backup.id !== entry.id) continue;
      const does = job.kind === 'restore' ? 'restores' : 'starts';
      throw new JobError('MACHINE_BUSY', `job ${job.id} ${does} ${job.machineName} from this backup`, {
        hint: `stillpoint job watch ${job.id}`,
        retryable: true,
      });
    }
    await this.looking.requireUnused(entry);
    await storage.delete(entry);
  }

  /** Directories of jobs, present and forgotten ones, beside the images of all machines. */
  async workDirectories(): Promise<readonly WorkDirectory[]> {
    return findWorkDirectories(this.parts.hypervisor, this.parts.config);
  }

  /**
   * Runs a job that was created by this process to its end, and what is done at once instead of a backup that has failed.
   * @returns the last of them
   */
  async run(job: JobRow): Promise<JobRow> {
    let row = await this.#runOnce(job);
    let decidedAgain = false;
    for (;;) {
      const instead = this.#insteadOf(row);
      if (instead === undefined || (instead.mode === 'auto' && decidedAgain)) return row;
      decidedAgain ||= instead.mode === 'auto';
      row = await this.#runOnce(await this.createBackup(instead, { insteadOf: row.id }));
    }
  }

  async #runOnce(job: JobRow): Promise<JobRow> {
    await this.#waitForTurn(job);
    return this.#kinds.runner(job).run(job.id);
  }

  #insteadOf(job: JobRow): BackupRequest | undefined {
    if (job.error === null) return undefined;
    const facts = this.backupFacts(job);
    return facts === undefined ? undefined : insteadOfFailed(facts, job.error);
  }

  /**
   * Writes the backups of machines down that are to have one T1: all of them, or none. `runTogether` does them.
   * @throws AgentError TOGETHER_UNSUITABLE; what `createBackup` throws
   */
  async createTogether(requests: readonly BackupRequest[]): Promise<readonly JobRow[]> {
    const group = await groupOf(this.parts.hypervisor, requests);
    const created: JobRow[] = [];
    try {
      for (const request of requests) created.push(await this.createBackup({ ...request, group }));
      return created;
    } catch (error) {
      for (const job of created) {
        this.parts.journal.requestCancel(job.id);
        await this.#kinds.runner(job).run(job.id);
      }
      throw error;
    }
  }

  /** Runs what `createTogether` has made to its end: one T1 for all of them, and then each on its own. */
  async runTogether(jobs: readonly JobRow[]): Promise<readonly JobRow[]> {
    const { config } = this.parts;
    for (const job of jobs) await this.#waitForTurn(job);
    const together = new Together({
      members: jobs.map(({ id }) => id),
      pauseMaxMs: Math.max(...jobs.map(groupPauseMaxMs)),
      readersMax: config.agent.maxParallelMachines,
    });
    return Promise.all(
      jobs.map(async ({ id, machineName, record }) => {
        const row = await this.#kinds
          .groupRunner({ record }, together)
          .run(id)
          .catch((error: unknown) => {
            // The others would wait for it for ever.
            together.fail(machineName, asStillpointError(error));
            throw error;
          });
        if (row.error !== null) together.fail(machineName, row.error);
        else if (row.state !== 'finished') together.fail(machineName, new Error(`it was ${row.state}`));
        return row;
      }),
    );
  }

  /**
   * Brings every job of a dead agent to an end, all at a time: a machine that is down must not wait for another
   * one's merge. Living owners keep theirs. A job that cannot be taken over is told and hides no other.
   */
  async recoverOrphans(): Promise<readonly JobRow[]> {
    return this.#recoverAll(this.parts.engine.orphaned());
  }

  /**
   * Tries again what was parked only because libvirt did not answer or refused: nothing that an operator would
   * have to put right first.
   */
  async retryParked(): Promise<readonly JobRow[]> {
    const parked = this.parts.journal.holding().filter(({ owner, error }) => {
      return owner === null && error !== null && retriedCodes.has(error.code);
    });
    return this.#recoverAll(parked);
  }

  async #recoverAll(jobs: readonly JobRow[]): Promise<readonly JobRow[]> {
    const recovered = await Promise.all(
      jobs.map(async (job) => {
        try {
          return await this.#kinds.runner(job).recover(job.id);
        } catch (error) {
          this.parts.report(job.id, error);
          return undefined;
        }
      }),
    );
    return recovered.filter((row) => row !== undefined);
  }

  /** Finishes deletions of backups that were interrupted. A storage that is away keeps them for whoever looks next. */
  async finishDeletions(): Promise<void> {
    for (const storage of this.parts.storages.values()) {
      try {
        await storage.cleanUp();
      } catch (error) {
        const record = errorRecord(error);
        // What is to be done there says more of it, such as that a stand-in is taken.
        if (record.retryable && record.code === 'STORAGE_UNREACHABLE')
          this.parts.note?.(
            { storage: storage.name },
            `not looked for what was left there: ${record.message}`,
          );
        else this.parts.report(undefined, error);
      }
    }
  }

  /**
   * Goes on with a job that was left with work to do.
   * @throws JobError JOB_STATE_INVALID
   */
  async retry(id: string): Promise<JobRow> {
    const job = this.parts.journal.get(id);
    const row = job.holdsMachine ? await this.#kinds.runner(job).recover(job.id) : undefined;
    if (row !== undefined) return row;
    throw new JobError(
      'JOB_STATE_INVALID',
      job.holdsMachine ? `job ${job.id} is running` : `job ${job.id} has ended (${job.state})`,
      {
        hint: job.holdsMachine
          ? `stillpoint job watch ${job.id}`
          : 'start a new one; nothing of this one is left',
      },
    );
  }

  /**
   * Cancels a job: a running one is told, one that was left with work is given up in an orderly way.
   * @throws JobError JOB_STATE_INVALID
   */
  async cancel(id: string): Promise<JobRow> {
    const job = this.parts.journal.get(id);
    if (!job.holdsMachine) {
      throw new JobError('JOB_STATE_INVALID', `job ${job.id} has ended (${job.state})`, {
        hint: `stillpoint job show ${job.id}`,
      });
    }
    this.parts.journal.requestCancel(job.id);
    const row = await this.#kinds.runner(job).recover(job.id);
    return row ?? this.parts.journal.get(job.id);
  }
}
