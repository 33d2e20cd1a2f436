import { once } from 'node:events';
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { get } from 'node:http';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { text } from 'node:stream/consumers';

import { credentials } from '@grpc/grpc-js';

import { Agent } from '../../agent/agent.ts';
import { JobSignals } from '../../agent/api/jobSignals.ts';
import { jobFates } from '../../agent/jobFates.ts';
import { Engine } from '../../agent/jobs/engine.ts';
import type { EngineListener } from '../../agent/jobs/engineListener.ts';
import { Journal } from '../../agent/jobs/journal.ts';
import { ServiceFigures } from '../../agent/observe/serviceFigures.ts';
import { runService } from '../../agent/service/service.ts';
import { StorageBandwidths } from '../../agent/storageBandwidths.ts';
import { storagesOf } from '../../agent/storages.ts';
import { createLogger } from '../../common/log.ts';
import { loadHostConfig } from '../../config/hostConfig.ts';
import { openStub, type Stub } from '../../controller/stub.ts';
import { AgentClient } from '../../proto/generated/stillpoint/v1/agent.ts';
import { eventually } from '../lab/eventually.ts';
import { noteSaid } from '../secrets.ts';
import { Site } from './site.ts';

/** Machines that run; each is backed up by requests. */
export const busyMachines = ['m', 'n', 'o', 'q'] as const;
/** It is off. */
export const machineThatIsOff = 'p';
/** It is backed up by its schedule alone, each minute. */
export const scheduledMachine = 's';
/** So many backups of each machine stay in each storage. */
const keptBackups = 2;

/**
 * The whole service, as `stillpoint agent` runs it, on a simulated host: with its socket, a schedule, copies, pruning, a
 * controller that takes its reports, metrics, and a configuration that is followed. Only libvirt is another one.
 */
export class SoakHost implements AsyncDisposable {
  readonly site: Site;
  readonly agent: Agent;
  /** Aborted when the service is to end. */
  readonly signal: AbortSignal;
  readonly #journal: Journal;
  readonly #stub: Stub;
  readonly #stop: AbortController;
  readonly #service: Promise<void>;
  readonly #configPath: string;
  readonly #logPath: string;
  readonly #logFile: number;
  #metrics = '';
  #limit = 0;
  #end: Promise<void> | undefined;

  private constructor(parts: {
    readonly site: Site;
    readonly agent: Agent;
    readonly journal: Journal;
    readonly stub: Stub;
    readonly stop: AbortController;
    readonly service: Promise<void>;
    readonly configPath: string;
    readonly log: { readonly path: string; readonly file: number };
  }) {
    this.site = parts.site;
    this.agent = parts.agent;
    this.signal = parts.stop.signal;
    this.#journal = parts.journal;
    this.#stub = parts.stub;
    this.#stop = parts.stop;
    this.#service = parts.service;
    this.#configPath = parts.configPath;
    this.#logPath = parts.log.path;
    this.#logFile = parts.log.file;
  }

  /** Returns when the service answers, reports, and tells its metrics. */
  static async start(): Promise<SoakHost> {
    const site = await Site.create({ targets: ['vda'], storages: ['near', 'vault'], ramDisk: true });
    for (const name of [...busyMachines.slice(1), machineThatIsOff, scheduledMachine])
      await site.addMachine(name);
    await site.world.shutDownGuest(machineThatIsOff);
    const controllerDirectory = join(site.directory, 'controller');
    await mkdir(controllerDirectory);
    const stub = await openStub({ directory: controllerDirectory, listen: '127.0.0.1:0' });
    const configPath = join(site.directory, 'config.yaml');
    await writeFile(configPath, documentOf(site, stub.address, 0));
    // What is said stays out of the memory that is measured.
    const logPath = join(site.directory, 'log');
    const logFile = openSync(logPath, 'w');
    const log = createLogger({ destination: { write: (line) => void writeSync(logFile, line) } });
    const loaded = await loadHostConfig(configPath);
    const { config, pushed } = loaded;
    const journal = new Journal(site.journalPath);
    const bandwidths = new StorageBandwidths(config);
    const jobSignals = new JobSignals();
    const figures = new ServiceFigures();
    const engine = new Engine({ journal, listener: both(jobSignals.listener(), figures.jobBytes.listener) });
    const agent = new Agent({
      config,
      pushed,
      configPath,
      hypervisor: site.world.connect(),
      journal,
      engine,
      storages: storagesOf(config, bandwidths, jobFates(journal)),
      bootDirectory: join(site.directory, 'boot'),
      report: (jobId, err) => log.error({ jobId, err }, 'work was left undone'),
    });
    const stop = new AbortController();
    const service = runService({
      agent,
      loaded,
      configPath,
      log,
      jobSignals,
      figures,
      signal: stop.signal,
      follow: async (changed) => {
        const storages = storagesOf(changed.config, bandwidths, jobFates(journal), agent.parts);
        return [...bandwidths.follow(changed.config), ...agent.follow({ ...changed, storages })];
      },
      leave: () => {
        throw new Error('the service was left with jobs at work');
      },
    });
    const host = new SoakHost({
      site,
      agent,
      journal,
      stub,
      stop,
      service,
      configPath,
      log: { path: logPath, file: logFile },
    });
    await Promise.race([eventually(() => host.#isReady()), service]);
    return host;
  }

  #isReady(): boolean {
    const said = this.said;
    const told = /"host":"([^"]+)","port":(\d+),"msg":"metrics are told here"/.exec(said);
    if (told === null || !said.includes('the agent is ready')) return false;
    this.#metrics = `http://${told[1]}:${told[2]}/metrics`;
    return true;
  }

  /** All that was said in the log. */
  get said(): string {
    return readFileSync(this.#logPath, 'utf8');
  }

  get socket(): string {
    return this.agent.parts.config.agent.socket;
  }

  /** A connection of its own; the caller closes it. */
  client(): AgentClient {
    return new AgentClient(`unix:${this.socket}`, credentials.createInsecure());
  }

  /** As Prometheus asks, on a connection of its own. */
  async scrape(): Promise<string> {
    const [response] = await once(get(this.#metrics, { agent: false }), 'response');
    return text(response);
  }

  /** Somebody edits the configuration; it is in force when this returns. */
  async editConfiguration(): Promise<void> {
    this.#limit = this.#limit === 0 ? 1024 ** 4 : 0;
    await writeFile(this.#configPath, documentOf(this.site, this.#stub.address, this.#limit));
    await eventually(() => this.agent.parts.config.storages['near']?.bandwidthBytesPerSecond === this.#limit);
  }

  /** How many jobs have come to their end, by kind and how it was. */
  get ended(): ReadonlyMap<string, number> {
    const database = new DatabaseSync(this.site.journalPath, { readOnly: true });
    try {
      const rows = database
        .prepare(
          'SELECT kind, state, count(*) AS count FROM jobs WHERE holds_machine = 0 GROUP BY kind, state',
        )
        .all();
      return new Map(
        rows.map(({ kind, state, count }) => [`${String(kind)} ${String(state)}`, Number(count)]),
      );
    } finally {
      database.close();
    }
  }

  /** The service ends, and all of the host with it; once. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#end ??= this.#endAll();
    return this.#end;
  }

  async #endAll(): Promise<void> {
    this.#stop.abort();
    await this.#service;
    await this.agent.parts.hypervisor[Symbol.asyncDispose]();
    this.#journal[Symbol.dispose]();
    await this.#stub[Symbol.asyncDispose]();
    closeSync(this.#logFile);
    noteSaid('the log of a service at work for long', this.said);
    await this.site[Symbol.asyncDispose]();
  }
}

/** The configuration of the host. */
function documentOf(site: Site, controller: string, bandwidthBytesPerSecond: number): string {
  const keep = { last: keptBackups };
  const policy = { mode: 'disk', storages: ['near'], keep, deadlines: { freezeSeconds: 1 } };
  return JSON.stringify({
    agent: {
      ramDisk: site.ramDisk,
      stateDir: join(site.directory, 'state'),
      socket: join(site.runDirectory, 'agent.sock'),
      maxParallelMachines: 4,
      logLevel: 'info',
    },
    controller: { address: controller },
    metrics: { listen: '127.0.0.1:0' },
    storages: {
      near: { kind: 'directory', path: site.storagePaths['near'], bandwidthBytesPerSecond },
      vault: site.vault?.settings,
    },
    policies: {
      default: policy,
      copied: { ...policy, replicate: [{ from: 'near', to: 'vault' }] },
      scheduled: { ...policy, schedule: { cron: '* * * * *', retries: { firstDelaySeconds: 1 } } },
    },
    machines: [
      { match: 'n', policy: 'copied' },
      { match: scheduledMachine, policy: 'scheduled' },
    ],
  });
}

/** One listener that tells two. */
function both(one: EngineListener, other: EngineListener): EngineListener {
  return {
    progress: (progress) => [one, other].forEach((listener) => listener.progress?.(progress)),
    state: (jobId, state) => [one, other].forEach((listener) => listener.state?.(jobId, state)),
    warning: (jobId, message) => [one, other].forEach((listener) => listener.warning?.(jobId, message)),
    error: (jobId, error) => [one, other].forEach((listener) => listener.error?.(jobId, error)),
  };
}
