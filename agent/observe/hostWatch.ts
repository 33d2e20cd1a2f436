import { type ErrorRecord, errorRecord, StillpointError } from '../../common/errors.ts';
import { nothingPushed } from '../../config/config.ts';
import type { Config } from '../../config/schema.ts';
import type { Agent } from '../agent.ts';
import { isMigratedAway } from '../hypervisor/migration.ts';
import { ScheduleReports } from '../service/report.ts';
import { failedCopies } from './failedCopies.ts';
import type { HostStatus } from './hostStatus.ts';
import { JobDigests } from './jobDigests.ts';
import { jobStatuses, serviceStatus } from './jobStatuses.ts';
import { type KnownMachine, machineStatuses } from './machineStatuses.ts';
import { scheduledPolicies } from './scheduledPolicies.ts';
import { StorageLooks } from './storageLooks.ts';

export interface HostWatchOptions {
  readonly agent: Agent;
  /** Storages are looked at as rarely as this. */
  readonly storagesEveryMs: number;
  /** libvirt is asked for its machines as rarely as this. */
  readonly machinesEveryMs: number;
  /** A look waits so long for storages that keep it waiting; then what was seen of them before counts. */
  readonly patienceMs: number;
  /** That of the host unless told. */
  readonly now?: (() => number) | undefined;
}

/**
 * Looks at a host: its jobs as they are now, from the journal; its machines and storages as they were a while ago,
 * because asking for them costs something. Changes nothing.
 */
export class HostWatch {
  readonly #options: HostWatchOptions;
  readonly #now: () => number;
  readonly #storages: StorageLooks;
  readonly #digests: JobDigests;
  /** Of the configuration in force when it was made. */
  #schedules: { readonly config: Config; readonly reports: ScheduleReports } | undefined;
  #machines: readonly KnownMachine[] | undefined;
  #machinesAtMs = Number.NEGATIVE_INFINITY;
  #unreachableSinceMs: number | null = null;
  #problem: ErrorRecord | null = null;
  #looking: Promise<HostStatus> | undefined;

  constructor(options: HostWatchOptions) {
    const { agent, now = Date.now } = options;
    this.#options = options;
    this.#now = now;
    const everyMs = options.storagesEveryMs;
    this.#storages = new StorageLooks(() => agent.parts.storages, { everyMs, now });
    this.#digests = new JobDigests(agent.parts.journal);
  }

  /**
   * What there is to tell now. Those who ask meanwhile get the same answer.
   * @throws JobError JOURNAL_UNUSABLE, or what SQLite throws for a journal that cannot be read
   */
  look(): Promise<HostStatus> {
    this.#looking ??= this.#lookAnew().finally(() => {
      this.#looking = undefined;
    });
    return this.#looking;
  }

  async #lookAnew(): Promise<HostStatus> {
    const { agent, patienceMs } = this.#options;
    await Promise.all([this.#renewMachines(), this.#storages.renew(patienceMs)]);
    const { journal } = agent.parts;
    const nowMs = this.#now();
    const storages = this.#storages.all();
    const known = { histories: this.#digests.histories(), storages };
    const about = { agent, schedules: this.#reports(), nowMs };
    const machines = this.#machines ?? this.#remembered();
    return {
      atMs: nowMs,
      service: serviceStatus(journal),
      hypervisor: { unreachableSinceMs: this.#unreachableSinceMs, problem: this.#problem },
      pushed: agent.parts.pushed ?? nothingPushed,
      jobs: jobStatuses(journal),
      machines: machineStatuses(machines, known, about),
      scheduledPolicies: scheduledPolicies(agent.parts.config),
      failedCopies: failedCopies(agent, machines, storages),
      storages,
      unseenStorages: this.#storages.unseen(),
    };
  }

  /** They remember what they have found out about time zones. */
  #reports(): ScheduleReports {
    const { agent } = this.#options;
    const { config } = agent.parts;
    if (this.#schedules?.config !== config) this.#schedules = { config, reports: new ScheduleReports(agent) };
    return this.#schedules.reports;
  }

  async #renewMachines(): Promise<void> {
    const { agent, machinesEveryMs } = this.#options;
    const nowMs = this.#now();
    if (Math.abs(nowMs - this.#machinesAtMs) < machinesEveryMs) return;
    this.#machinesAtMs = nowMs;
    const { hypervisor, journal } = agent.parts;
    try {
      const machines = await hypervisor.machines();
      // What is started to verify a backup is no machine of this host, nor is one that was migrated to another.
      this.#machines = machines.filter(
        ({ uuid, status }) => journal.holder(uuid)?.kind !== 'verify' && !isMigratedAway(status),
      );
      this.#unreachableSinceMs = null;
      this.#problem = null;
    } catch (error) {
      if (!(error instanceof StillpointError)) throw error;
      this.#unreachableSinceMs ??= nowMs;
      this.#problem = errorRecord(error);
    }
  }

  /** While libvirt has never answered: the machines that have a schedule. */
  #remembered(): readonly KnownMachine[] {
    const rows = this.#options.agent.parts.journal.schedules();
    return rows.map(({ machineUuid, machineName }) => ({
      uuid: machineUuid,
      name: machineName,
      status: null,
    }));
  }
}
