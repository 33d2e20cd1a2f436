import { type ChannelCredentials, type ChannelOptions, status } from '@grpc/grpc-js';
import { ReportServiceClient } from '../../proto/generated/stillpoint/v1/report.ts';
import { messageOf } from '../../common/errors.ts';
import type { Logger } from '../../common/log.ts';
import { pause } from '../../common/wake.ts';
import { Backoff } from './backoff.ts';
import { Delivery, type ReportingHost } from './delivery.ts';
import { ReportError } from './errors.ts';
import type { OutboxKeeper } from './outboxKeeper.ts';

/** The way to a controller. */
export interface ControllerChannel {
  /** HOST:PORT */
  readonly address: string;
  /** Asked for anew for each connection: certificates are renewed meanwhile. */
  readonly credentials: () => ChannelCredentials | Promise<ChannelCredentials>;
  /**
   * What there is by now against who has answered on the newest connection; undefined: nothing. Rejects where that
   * cannot be said.
   */
  readonly objection?: (() => Promise<Error | undefined>) | undefined;
  /** What its connections need besides. */
  readonly options?: ChannelOptions | undefined;
}

const channelOptions: ChannelOptions = {
  // A cut that nobody told us of is noticed.
  'grpc.keepalive_time_ms': 20_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.max_receive_message_length': 64 * 1024,
  // Attempts, and the delays between them, are ours: no other channel's failure is waited for.
  'grpc.use_local_subchannel_pool': 1,
  'grpc.enable_retries': 0,
  'grpc.enable_http_proxy': 0,
};

const firstDelayMs = 1_000;
const maxDelayMs = 60_000;

/** What another attempt does not change until somebody does something. */
const refusals: ReadonlySet<unknown> = new Set([
  status.UNAUTHENTICATED,
  status.PERMISSION_DENIED,
  status.INVALID_ARGUMENT,
  status.UNIMPLEMENTED,
]);

export interface SenderOptions {
  readonly keeper: OutboxKeeper;
  readonly channel: ControllerChannel;
  readonly host: ReportingHost;
  readonly log: Logger;
  /** Delays between attempts; 1 s to 1 min unless told. */
  readonly backoff?: Backoff | undefined;
}

/** Sends what is in the outbox to the controller, for as long as there is one to be reached. */
export class Sender {
  readonly #options: SenderOptions;
  readonly #backoff: Backoff;
  #delivery: Delivery | undefined;
  /** What was told last about the way to the controller: what is wrong, or null: nothing. */
  #told: string | null | undefined;

  constructor(options: SenderOptions) {
    this.#options = options;
    this.#backoff =
      options.backoff ??
      new Backoff({ firstMs: firstDelayMs, maxMs: maxDelayMs, random: () => Math.random() });
  }

  /** There may be something to send. */
  wake(): void {
    this.#delivery?.wake();
  }

  /** Looks again whether who takes the reports is still to be trusted, and ends the connection where not. Never rejects. */
  async review(): Promise<void> {
    const delivery = this.#delivery;
    const { objection = () => Promise.resolve(undefined) } = this.#options.channel;
    const found = await objection().catch((error: unknown) => error);
    if (found !== undefined) delivery?.fail(found instanceof Error ? found : new Error(messageOf(found)));
  }

  /** Sends until the signal. Never rejects: what goes wrong is told in the log, and tried again. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#deliver(signal);
      } catch (error) {
        this.#tell(asReportError(this.#options.channel.address, error), kindOf(error));
      }
      await pause(this.#backoff.next(), signal);
    }
  }

  async #deliver(signal: AbortSignal): Promise<void> {
    const { keeper, channel, host, log } = this.#options;
    const { outbox } = keeper;
    const client = new ReportServiceClient(channel.address, await channel.credentials(), {
      ...channel.options,
      ...channelOptions,
    });
    try {
      this.#delivery = new Delivery(client.deliver(), outbox, {
        signal,
        onAcknowledged: () => {
          this.#backoff.reset();
          if (this.#told === null) return;
          this.#told = null;
          log.info({ controller: channel.address }, 'the controller takes reports');
        },
        onGeneration: (why) =>
          log.warn({ controller: channel.address, why }, 'the controller is told everything anew'),
      });
      await this.#delivery.run(host);
    } finally {
      this.#delivery = undefined;
      client.close();
    }
  }

  /** Each thing once, until it is another one: a controller may be away for days. */
  #tell(error: ReportError, kind: string): void {
    const { log, channel } = this.#options;
    const isNew = this.#told !== kind;
    this.#told = kind;
    const about = { controller: channel.address, err: error };
    if (isNew) log.warn(about, 'reports wait in the outbox');
    else log.debug(about, 'reports wait in the outbox');
  }
}

/** What kind of error it is; a message of gRPC has times in it. */
function kindOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : messageOf(error);
}

function asReportError(address: string, error: unknown): ReportError {
  if (error instanceof ReportError) return error;
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (refusals.has(code))
    return new ReportError('CONTROLLER_REFUSED', `${address} refuses reports: ${messageOf(error)}`, {
      hint: 'controller: in the configuration; its log says more',
      cause: error,
    });
  return new ReportError('CONTROLLER_UNREACHABLE', `${address} takes no reports: ${messageOf(error)}`, {
    hint: 'controller: in the configuration; nothing is lost meanwhile within outboxMaxBytes',
    cause: error,
    retryable: true,
  });
}
