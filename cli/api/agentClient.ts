import { type ClientReadableStream, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { newId } from '../../common/ids.ts';
import {
  AgentClient as GrpcClient,
  type CancelJobResponse,
  type GetHostResponse,
  type GetJobResponse,
  HostView,
  type Job,
  type ListMachinesResponse,
  type Machine,
  type RetryJobResponse,
  type StartBackupRequest,
  type StartBackupResponse,
  type StartedBackup,
  type WatchJobRequest,
  type WatchJobResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { CliError } from '../errors.ts';
import { failureOf } from './serviceFailure.ts';

/** A living service answers at once, unless the host itself stands still. */
const helloMs = 10_000;
/** Ends of backups are looked up in storages, which may be slow; so long a call may last at the most. */
const callMs = 600_000;

type Answer<Response> = (error: ServiceError | null, response: Response) => void;

/** The service of this host, as a command asks it. What fails is thrown in our words. */
export class AgentClient implements Disposable {
  readonly #client: GrpcClient;

  constructor(socket: string) {
    this.#client = new GrpcClient(`unix:${socket}`, credentials.createInsecure(), {
      // One that is gone is told to who waits, instead of being waited for.
      'grpc.enable_retries': 0,
    });
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }

  /** Who answers. */
  hello(): Promise<GetHostResponse> {
    const request = { view: HostView.HOST_VIEW_BASIC };
    return this.#ask((done, metadata) =>
      this.#client.getHost(request, metadata, { deadline: Date.now() + helloMs }, done),
    );
  }

  /** All machines of the host. */
  async machines(): Promise<readonly Machine[]> {
    const machines: Machine[] = [];
    let pageToken = '';
    do {
      const request = { pageSize: 0, pageToken };
      const page = await this.#ask<ListMachinesResponse>((done, metadata, options) =>
        this.#client.listMachines(request, metadata, options, done),
      );
      machines.push(...page.machines);
      pageToken = page.nextPageToken;
    } while (pageToken !== '');
    return machines;
  }

  /** Begins backups: what became of each machine, in their order. */
  async startBackup(request: Omit<StartBackupRequest, 'idempotencyKey'>): Promise<readonly StartedBackup[]> {
    const { backups } = await this.#ask<StartBackupResponse>((done, metadata, options) =>
      this.#client.startBackup({ ...request, idempotencyKey: newId() }, metadata, options, done),
    );
    return backups;
  }

  /** A job with its steps and what it has made. */
  job(id: string): Promise<GetJobResponse> {
    return this.#ask((done, metadata, options) => this.#client.getJob({ id }, metadata, options, done));
  }

  /** Asks for the end of a job. */
  async cancelJob(id: string): Promise<Job> {
    const { job } = await this.#ask<CancelJobResponse>((done, metadata, options) =>
      this.#client.cancelJob({ id }, metadata, options, done),
    );
    return required(job);
  }

  /** Has a job gone on with. */
  async retryJob(id: string): Promise<Job> {
    const { job } = await this.#ask<RetryJobResponse>((done, metadata, options) =>
      this.#client.retryJob({ id, idempotencyKey: newId() }, metadata, options, done),
    );
    return required(job);
  }

  /** What is new about a job, until nobody works on it; errors as the library throws them. */
  watchJob(request: WatchJobRequest): ClientReadableStream<WatchJobResponse> {
    return this.#client.watchJob(request);
  }

  #ask<Response>(
    begin: (done: Answer<Response>, metadata: Metadata, options: { readonly deadline: number }) => unknown,
  ): Promise<Response> {
    const { promise, resolve: answered, reject: failed } = Promise.withResolvers<Response>();
    const done: Answer<Response> = (error, response) => {
      if (error === null) answered(response);
      else failed(failureOf(error));
    };
    begin(done, new Metadata(), { deadline: Date.now() + callMs });
    return promise;
  }
}

/** What every answer has. @throws CliError SERVICE_INCOMPATIBLE */
export function required<T>(part: T | undefined): T {
  if (part !== undefined) return part;
  throw new CliError(
    'SERVICE_INCOMPATIBLE',
    'the service of this host answers what this program does not understand',
    'systemctl restart stillpoint-agent; or the same command with --standalone',
  );
}
