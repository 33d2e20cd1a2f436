import { assertNever } from '../common/errors.ts';
import { freeBytes } from '../common/files.ts';
import { formatBytes } from '../common/units.ts';
import type { Storage } from '../storage/storage.ts';
import type { AgentParts } from './agent.ts';
import type { MachineLimits } from './machineLimits.ts';
import { backupJob } from './backup/backupJob.ts';
import type { BackupFacts } from './backup/facts.ts';
import { type LiveFacts, liveFactsSchema } from './backup/liveFacts.ts';
import { type OnHookEnd, withHooks } from './backup/hooks.ts';
import { withLeaving } from './backup/leftHost.ts';
import { liveJob } from './backup/liveJob.ts';
import { type MarkedWindow, withMarker } from './backup/marking.ts';
import { plannedRamDiskBytes, ramDiskUseSchema } from './backup/ramDiskUse.ts';
import { type ReadFacts, readFactsSchema } from './backup/readFacts.ts';
import { readJob } from './backup/readJob.ts';
import type { Engine } from './jobs/engine.ts';
import { JobError } from './jobs/errors.ts';
import type { JobRow } from './jobs/job.ts';
import type { JobDefinition } from './jobs/step.ts';
import { bootJob } from './restore/bootJob.ts';
import type { BootFacts } from './restore/bootPlan.ts';
import type { RestoreFacts } from './restore/plan.ts';
import { restoreJob } from './restore/restoreJob.ts';
import { type ReplicationFacts, replicationJob } from './replicationJob.ts';
import { planLineages } from './retain/lineage.ts';
import { requireStorages, requireStoragesForRead } from './retain/storageRoom.ts';
import { chooseAgain, trialOfRead, trialOfSave, warningsOf } from './storageGroups.ts';
import type { Together } from './snapshot/together.ts';

/** A journal that cannot be written would stop a job in its pause. */
const journalBytesMin = 16 * 1024 * 1024;

/** The engine with one kind of job. */
export interface JobRunner {
  run(jobId: string): Promise<JobRow>;
  recover(jobId: string): Promise<JobRow | undefined>;
}

function runnerOf<Facts>(engine: Engine, definition: JobDefinition<Facts>): JobRunner {
  return {
    run: (jobId) => engine.run(definition, jobId),
    recover: (jobId) => engine.recover(definition, jobId),
  };
}

/** The kinds of jobs that an agent has, each with what it needs of its host. */
export class JobKinds {
  readonly #parts: AgentParts;
  readonly #limits: MachineLimits;
  /** Throws for a storage that is not configured. */
  readonly storage: (name: string) => Storage;

  /** @param storage throws for a storage that is not configured */
  constructor(parts: AgentParts, limits: MachineLimits, storage: (name: string) => Storage) {
    this.#parts = parts;
    this.#limits = limits;
    this.storage = storage;
  }

  /** What runs or recovers a job of its kind. */
  runner(job: Pick<JobRow, 'kind' | 'record'>): JobRunner {
    const { engine } = this.#parts;
    const { kind } = job;
    switch (kind) {
      case 'backup':
        // A record that neither can read is parked by the engine.
        if (liveFactsSchema.safeParse(job.record).success) return runnerOf(engine, this.live());
        return readFactsSchema.safeParse(job.record).success
          ? runnerOf(engine, this.read())
          : runnerOf(engine, this.backup());
      case 'restore':
        return runnerOf(engine, this.restore());
      case 'verify':
        return runnerOf(engine, this.boot());
      case 'replicate':
        return runnerOf(engine, this.replication());
      default:
        return assertNever(kind);
    }
  }

  /** What runs a job of a group that shares T1. */
  groupRunner(job: Pick<JobRow, 'record'>, together: Together): JobRunner {
    const { engine } = this.#parts;
    return liveFactsSchema.safeParse(job.record).success
      ? runnerOf(engine, this.live(together))
      : runnerOf(engine, this.read(together));
  }

  /** What every kind of backup needs. */
  #forBackups(): Pick<
    Parameters<typeof readJob>[0],
    'hypervisor' | 'storage' | 'stepRows' | 'allStorages' | 'limits'
  > {
    const { hypervisor, journal, storages } = this.#parts;
    return {
      hypervisor,
      storage: this.storage,
      stepRows: (jobId) => journal.steps(jobId),
      allStorages: () => [...storages.values()],
      limits: ({ machine, settings }) => this.#limits.of(machine.name, settings),
    };
  }

  /** A backup in mode `save`. */
  backup(): JobDefinition<BackupFacts> {
    const job = backupJob({
      ...this.#forBackups(),
      ramDiskReservedBytes: (jobId) => this.ramDiskReservedBytes(jobId),
      checkStorages: async (facts, plan) => {
        await this.#requireJournalSpace();
        const storages = facts.settings.storages.map(this.storage);
        return [...(await requireStorages(storages, plan)), ...(await warningsOf(facts.settings, storages))];
      },
      chooseStorages: ({ settings }, plan) =>
        chooseAgain(this.#parts.config, settings, this.storage, trialOfSave(plan)),
    });
    return this.#ofPolicy(job, {
      first: 'save',
      last: 'resume',
      atMostMs: ({ settings }) => settings.saveDeadlineMs + settings.restoreDeadlineMs,
    });
  }

  /** A job with what a policy has done around it. */
  #ofPolicy<Facts extends BackupFacts | ReadFacts | LiveFacts>(
    job: JobDefinition<Facts>,
    window: MarkedWindow<Facts>,
  ): JobDefinition<Facts> {
    const { hypervisor, note } = this.#parts;
    const onHookEnd: OnHookEnd = (jobId, hook, { state, exitCode, durationMs, output }) =>
      note?.({ jobId, hook, exitCode, durationMs, output }, `hook ${state}`);
    return withHooks(withLeaving(withMarker(job, window), hypervisor), onHookEnd);
  }

  /** A backup in mode `disk` or `offline`. */
  read(together?: Together): JobDefinition<ReadFacts> {
    const job = readJob({
      ...this.#forBackups(),
      checkStorages: async (facts, plan) => {
        await this.#requireJournalSpace();
        const storages = facts.settings.storages.map(this.storage);
        const warnings = await requireStoragesForRead(storages, plan);
        return [...warnings, ...(await warningsOf(facts.settings, storages))];
      },
      chooseStorages: ({ backupId, settings }, plan) =>
        chooseAgain(
          this.#parts.config,
          settings,
          this.storage,
          trialOfRead(this.#parts.hypervisor, plan, { backupId, ...settings }),
        ),
      planLineages: ({ backupId, settings }, plan) =>
        planLineages(this.#parts.hypervisor, plan, settings.storages.map(this.storage), {
          backupId,
          ...settings,
        }),
      together,
    });
    return this.#ofPolicy(job, {
      first: 'begin',
      last: 'begin',
      atMostMs: ({ settings }) => 2 * settings.freeze.deadlineMs,
    });
  }

  /** A backup in mode `live`. */
  live(together?: Together): JobDefinition<LiveFacts> {
    const job = liveJob({
      ...this.#forBackups(),
      ramDiskReservedBytes: (jobId) => this.ramDiskReservedBytes(jobId),
      checkStorages: async (facts, plan) => {
        await this.#requireJournalSpace();
        const storages = facts.settings.storages.map(this.storage);
        const warnings = await requireStoragesForRead(storages, plan, plan.memoryBytes);
        return [...warnings, ...(await warningsOf(facts.settings, storages))];
      },
      chooseStorages: ({ backupId, settings }, plan) =>
        chooseAgain(
          this.#parts.config,
          settings,
          this.storage,
          trialOfRead(this.#parts.hypervisor, plan, { backupId, ...settings }, plan.memoryBytes),
        ),
      planLineages: ({ backupId, settings }, plan) =>
        planLineages(this.#parts.hypervisor, plan, settings.storages.map(this.storage), {
          backupId,
          ...settings,
        }),
      together,
    });
    return this.#ofPolicy(job, {
      first: 'snapshot',
      last: 'snapshot',
      atMostMs: ({ settings }) => settings.convergeMs + settings.saveDeadlineMs,
    });
  }

  /** What the unfinished jobs are still going to write to the RAM disk. */
  ramDiskReservedBytes(exceptJobId?: string): number {
    const others = this.#parts.journal.holding().filter(({ id }) => id !== exceptJobId);
    return plannedRamDiskBytes(others.flatMap((job) => ramDiskUseSchema.safeParse(job.record).data ?? []));
  }

  async #requireJournalSpace(): Promise<void> {
    const { stateDir } = this.#parts.config.agent;
    const free = await freeBytes(stateDir);
    if (free >= journalBytesMin) return;
    throw new JobError(
      'JOURNAL_UNUSABLE',
      `the file system of the journal has ${formatBytes(free)} free, a job needs ${formatBytes(journalBytesMin)}`,
      {
        hint: `df -h ${stateDir}`,
        retryable: true,
      },
    );
  }

  /** Copies of backups that were made already. */
  replication(): JobDefinition<ReplicationFacts> {
    return replicationJob(this.storage);
  }

  restore(): JobDefinition<RestoreFacts> {
    const { hypervisor } = this.#parts;
    return restoreJob({ hypervisor, storage: this.storage });
  }

  /** The start of a backup in isolation. */
  boot(): JobDefinition<BootFacts> {
    return bootJob({
      hypervisor: this.#parts.hypervisor,
      storage: this.storage,
      store: async ({ backup }, result, picture) => {
        const storage = this.storage(backup.storage);
        await storage.addVerification(await storage.find(backup.id), result, picture);
      },
    });
  }
}
