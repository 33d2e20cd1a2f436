import { Writable } from 'node:stream';
import { type ClientReadableStream, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { detailOf } from '../../agent/api/grpcErrors.ts';
import { JobSignals } from '../../agent/api/jobSignals.ts';
import { type ServedApi, serveApi } from '../../agent/api/serveApi.ts';
import { PushedPolicies } from '../../agent/api/pushedPolicies.ts';
import { copyAfter } from '../../agent/service/copyAfter.ts';
import { createLogger, type Logger } from '../../common/log.ts';
import {
  AgentClient,
  type Job,
  type StartBackupRequest,
  type StartBackupResponse,
  type WatchJobResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { type LivingAgent, Site, type SiteOptions } from './site.ts';

/** What a call of a client gives its answer to. */
export type Answer<Response> = (error: ServiceError | null, response: Response) => void;

/** A simulated host whose service answers on its socket, and a client of it. */
export class ServedSite implements AsyncDisposable {
  readonly site: Site;
  readonly signals: JobSignals;
  /** Lines of the log. */
  readonly said: string[] = [];
  readonly #clients: AgentClient[] = [];
  #service:
    | { readonly living: LivingAgent; readonly api: ServedApi; readonly stop: AbortController }
    | undefined;

  private constructor(site: Site, signals: JobSignals) {
    this.site = site;
    this.signals = signals;
  }

  /** The machine `m` runs, is backed up in mode `disk`, and the service answers. */
  static async create(options: SiteOptions = {}): Promise<ServedSite> {
    const signals = new JobSignals();
    const policy = { mode: 'disk', ...options.policy };
    const site = await Site.create({ targets: ['vda'], ...options, policy, listener: signals.listener() });
    const served = new ServedSite(site, signals);
    await served.start();
    return served;
  }

  get socket(): string {
    return `${this.site.runDirectory}/agent.sock`;
  }

  get living(): LivingAgent {
    return this.#required().living;
  }

  get api(): ServedApi {
    return this.#required().api;
  }

  #required() {
    if (this.#service === undefined) throw new Error('no service runs');
    return this.#service;
  }

  /** The service starts. */
  async start(): Promise<void> {
    const living = this.site.openAgent();
    const stop = new AbortController();
    const { agent } = living;
    const log = this.#log();
    const pushed = new PushedPolicies({ agent, log });
    await pushed.open();
    const api = await serveApi({
      agent,
      log,
      signals: this.signals,
      pushed,
      ending: stop.signal,
      makeCopies: (machine, onCopy) =>
        copyAfter(agent, machine, {
          log,
          signal: stop.signal,
          onCopy: ({ rule, job, error }) => onCopy({ ...rule, job, error }),
        }),
    });
    this.#service = { living, api, stop };
  }

  #log(): Logger {
    const destination = new Writable({
      write: (line: Buffer, _, done) => {
        this.said.push(String(line));
        done();
      },
    });
    return createLogger({ level: 'debug', destination });
  }

  /** The service is asked to end. */
  ask(): void {
    this.#required().stop.abort();
  }

  /** The service is asked to end, and ends. */
  async stop(): Promise<void> {
    const { api, stop } = this.#required();
    this.#service = undefined;
    stop.abort();
    await api[Symbol.asyncDispose]();
  }

  /** A connection of its own. */
  client(): AgentClient {
    const client = new AgentClient(`unix:${this.socket}`, credentials.createInsecure());
    this.#clients.push(client);
    return client;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.#clients) client.close();
    if (this.#service !== undefined) await this.stop();
    await this.site[Symbol.asyncDispose]();
  }
}

/** Makes a promise of a call. */
export function answerOf<Response>(begin: (done: Answer<Response>) => unknown): Promise<Response> {
  const { promise, resolve, reject } = Promise.withResolvers<Response>();
  begin((error, response) => {
    if (error === null) resolve(response);
    else reject(error);
  });
  return promise;
}

/** A request for a backup of `m`. */
export function startRequest(fields: Partial<StartBackupRequest> = {}): StartBackupRequest {
  return {
    idempotencyKey: 'key-1',
    machines: ['m'],
    mode: 0,
    storages: [],
    labels: {},
    reread: false,
    ...fields,
  };
}

export function startBackup(
  client: AgentClient,
  fields: Partial<StartBackupRequest> = {},
): Promise<StartBackupResponse> {
  return answerOf((done) => client.startBackup(startRequest(fields), new Metadata(), done));
}

/** The job of the first machine of an answer. */
export function firstJob({ backups: [first] }: StartBackupResponse): Job {
  if (first?.outcome?.$case !== 'job') throw new Error(`no job was begun: ${JSON.stringify(first?.outcome)}`);
  return first.outcome.value;
}

/** Follows a job to its end: everything that was told. */
export function watched(
  client: AgentClient,
  id: string,
  fields: { readonly cursor?: string; readonly withCopies?: boolean } = {},
): Promise<readonly WatchJobResponse[]> {
  return gathered(client.watchJob({ id, cursor: '', withCopies: false, ...fields }));
}

/** Everything that a stream tells, or the first so many messages. */
export async function gathered<Message>(
  stream: ClientReadableStream<Message>,
  count = Number.POSITIVE_INFINITY,
): Promise<readonly Message[]> {
  const messages: AsyncIterable<Message> = stream;
  const told: Message[] = [];
  for await (const message of messages) {
    told.push(message);
    if (told.length === count) break;
  }
  return told;
}

/** The code that a call was refused with. */
export async function refusal(
  call: Promise<unknown>,
): Promise<{ readonly code: string; readonly status: number }> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof Error) || !('metadata' in error) || !(error.metadata instanceof Metadata))
      throw error;
    const code = detailOf({ metadata: error.metadata })?.code ?? '';
    return { code, status: 'code' in error ? Number(error.code) : -1 };
  }
  throw new Error('the call was not refused');
}
