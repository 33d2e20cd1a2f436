import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { LoadedConfig } from '../config/config.ts';
import type { Config } from '../config/schema.ts';
import { exists } from '../common/files.ts';
import { activeTestSwitches } from '../common/testSwitches.ts';
import { aboutMachine, type Logger, type LoggedMachine } from '../common/log.ts';
import { isErrno, StillpointError } from '../common/errors.ts';
import { Agent } from './agent.ts';
import { LibvirtHypervisor } from './hypervisor/libvirt/libvirtHypervisor.ts';
import { crashPointOf } from './jobs/crashPoint.ts';
import { Engine, type EngineOptions } from './jobs/engine.ts';
import type { EngineListener } from './jobs/engineListener.ts';
import { machineOf } from './jobs/job.ts';
import { Journal } from './jobs/journal.ts';
import { jobFates } from './jobFates.ts';
import { StorageBandwidths } from './storageBandwidths.ts';
import { storagesOf } from './storages.ts';

export interface OpenAgentOptions {
  readonly loaded: LoadedConfig;
  readonly configPath: string;
  readonly log: Logger;
  readonly listener?: EngineListener | undefined;
  /** Only to look: nothing is created, and a journal that is not there counts as an empty one. */
  readonly readOnly?: boolean | undefined;
  /** Called at every named moment of every job; the environment may name one to crash at unless told. */
  readonly onPoint?: EngineOptions['onPoint'];
}

/** An agent and what must be closed with it. */
export interface OpenAgent extends AsyncDisposable {
  readonly agent: Agent;
  /** Of its storages; what is under way follows their changes. */
  readonly bandwidths: StorageBandwidths;
  /**
   * Has everything that begins from now on go by another configuration, and what runs by its limits. The journal and
   * libvirt stay those that were opened: see `withoutLifelong`.
   * @returns names of storages, and of machines with a job, whose limits are others now
   */
  follow(loaded: Pick<LoadedConfig, 'config' | 'pushed'>): Promise<readonly string[]>;
}

/**
 * Composes the agent of this host from its configuration: the only place that knows every implementation.
 * @throws JobError JOURNAL_UNUSABLE
 */
export async function openAgent(options: OpenAgentOptions): Promise<OpenAgent> {
  const { config } = options.loaded;
  const { log } = options;
  const switches = activeTestSwitches();
  if (switches.length > 0)
    log.warn({ switches }, 'cures are switched off for a test: never run this on a real host');
  const readOnly = options.readOnly ?? false;
  if (!readOnly) await makeRamDisk(config);
  const journalFile = join(config.agent.stateDir, 'journal.sqlite');
  const journal =
    readOnly && !(await exists(journalFile))
      ? new Journal(':memory:')
      : new Journal(journalFile, { readOnly });
  const hypervisor = new LibvirtHypervisor({ uri: config.agent.libvirtUri });
  const bandwidths = new StorageBandwidths(config);
  const storages = storagesOf(config, bandwidths, jobFates(journal));
  const machines = new MachineNames(journal);
  const engine = new Engine({
    journal,
    listener: logged(log, machines, options.listener),
    onPoint: options.onPoint ?? crashPointOf(process.env),
  });
  const report = (jobId: string | undefined, error: unknown): void =>
    log.error({ ...machines.about(jobId), err: error }, 'work was left undone');
  const agent = new Agent({
    report,
    note: (about, message) => log.info(about, message),
    config,
    pushed: options.loaded.pushed,
    configPath: options.configPath,
    hypervisor,
    journal,
    engine,
    storages,
  });
  return {
    agent,
    bandwidths,
    follow: async ({ config: changed, pushed }) => {
      await makeRamDisk(changed);
      const names = bandwidths.follow(changed);
      const made = storagesOf(changed, bandwidths, jobFates(journal), agent.parts);
      return [...names, ...agent.follow({ config: changed, storages: made, pushed })];
    },
    [Symbol.asyncDispose]: async () => {
      await hypervisor[Symbol.asyncDispose]();
      journal[Symbol.dispose]();
    },
  };
}

async function makeRamDisk({ agent: { ramDisk } }: Config): Promise<void> {
  if (ramDisk !== null) await mkdir(ramDisk, { recursive: true, mode: 0o700 });
}

/** Everything that a job says goes to the log once, with its machine, and on to whoever watches. */
function logged(log: Logger, machines: MachineNames, listener: EngineListener | undefined): EngineListener {
  return {
    progress: (progress) => listener?.progress?.(progress),
    state: (jobId, state) => {
      log.info({ ...machines.about(jobId), state }, 'job state');
      listener?.state?.(jobId, state);
    },
    warning: (jobId, message) => {
      log.warn(machines.about(jobId), message);
      listener?.warning?.(jobId, message);
    },
    error: (jobId, error) => {
      log.error({ ...machines.about(jobId), err: error }, 'job step failed');
      listener?.error?.(jobId, error);
    },
  };
}

/** Jobs whose machines are remembered. */
const namesMax = 1000;

/** Whose job it is, for the log. */
class MachineNames {
  readonly #journal: Journal;
  readonly #machines = new Map<string, LoggedMachine>();

  constructor(journal: Journal) {
    this.#journal = journal;
  }

  /** What a line says that is about a job. */
  about(jobId: string | undefined): { readonly jobId?: string } & Partial<LoggedMachine> {
    if (jobId === undefined) return {};
    const machine = this.#machines.get(jobId) ?? this.#ask(jobId);
    if (machine === undefined) return { jobId };
    if (this.#machines.size >= namesMax) this.#machines.clear();
    this.#machines.set(jobId, machine);
    return { jobId, ...machine };
  }

  #ask(jobId: string): LoggedMachine | undefined {
    try {
      return aboutMachine(machineOf(this.#journal.get(jobId)));
    } catch (error) {
      // What there is to say comes first: a journal that cannot be read is told of by who needs it.
      if (error instanceof StillpointError || isErrno(error, 'ERR_SQLITE_ERROR')) return undefined;
      throw error;
    }
  }
}
