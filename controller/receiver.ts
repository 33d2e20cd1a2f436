import { type ServerDuplexStream, status } from '@grpc/grpc-js';
import type {
  DeliverRequest,
  DeliverResponse,
  ReportHello,
  Report,
  ReportServiceServer,
} from '../proto/generated/stillpoint/v1/report.ts';
import { errorRecord, messageOf } from '../common/errors.ts';
import { isUuid } from '../common/ids.ts';
import type { ReportStore, Taken } from './reportStore.ts';

/** So many reports of a host may be on their way: they are stored together, and held in memory until then. */
const windowReports = 256;
/** What arrives within so long is stored in one go. */
const gatherMs = 10;

export type DeliverCall = ServerDuplexStream<DeliverRequest, DeliverResponse>;

export interface ReceiverOptions {
  readonly store: ReportStore;
  /**
   * Says why a host must not report over a connection, by what its certificate says; null: it may.
   * Everybody may unless told.
   */
  readonly refusalOf?: ((call: DeliverCall, hello: ReportHello) => string | null) | undefined;
  /** Is told of everything that was stored, after it was. */
  readonly onTaken?: ((taken: Omit<Taken, 'receivedThrough'>) => void) | undefined;
  /** Is told of what ends a stream but for its host. */
  readonly onFault?: ((host: string | null, error: unknown) => void) | undefined;
}

/** Receives the reports of hosts, and acknowledges only what is stored. */
export class Receiver {
  readonly #options: ReceiverOptions;
  /** The newest stream of each host. */
  readonly #streams = new Map<string, ReportStream>();

  constructor(options: ReceiverOptions) {
    this.#options = options;
  }

  /** What a server serves. */
  get service(): ReportServiceServer {
    return { deliver: (call) => this.#take(call) };
  }

  #take(call: DeliverCall): void {
    const stream = new ReportStream(call, this.#options, (host) => {
      this.#streams.get(host)?.end(status.ABORTED, 'another stream of this host has begun');
      this.#streams.set(host, stream);
    });
  }

  /** Ends all streams: the hosts come back to whoever listens then. */
  [Symbol.dispose](): void {
    for (const stream of this.#streams.values()) stream.end(status.UNAVAILABLE, 'the receiver ends');
  }
}

/** What is read of one host, on one connection. */
class ReportStream {
  readonly #call: DeliverCall;
  readonly #options: ReceiverOptions;
  readonly #onBegun: (host: string) => void;
  #hello: ReportHello | undefined;
  #waiting: Report[] = [];
  #isStoring = false;
  #isOver = false;

  constructor(call: DeliverCall, options: ReceiverOptions, onBegun: (host: string) => void) {
    this.#call = call;
    this.#options = options;
    this.#onBegun = onBegun;
    call
      .on('data', (request: DeliverRequest) => this.#attempt(() => this.#hear(request)))
      .on('end', () => this.#attempt(() => this.#finish()))
      .on('cancelled', () => (this.#isOver = true))
      // The host is gone, or we have said why it must go: it comes back by itself.
      .on('error', () => (this.#isOver = true));
  }

  /** null: it has not said who it is. */
  get host(): string | null {
    return this.#hello?.hostId ?? null;
  }

  end(code: status, details: string): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#waiting = [];
    this.#call.emit('error', { code, details });
  }

  #attempt(work: () => void): void {
    if (this.#isOver) return;
    try {
      work();
    } catch (error) {
      this.#options.onFault?.(this.host, error);
      const { code } = errorRecord(error);
      this.end(
        code === 'REPORT_STORE_UNUSABLE' ? status.UNAVAILABLE : status.INTERNAL,
        `${code}: ${messageOf(error)}`,
      );
    }
  }

  #hear({ message }: DeliverRequest): void {
    const hello = this.#hello;
    if (hello === undefined) {
      if (message?.$case === 'hello') this.#begin(message.value);
      else this.end(status.INVALID_ARGUMENT, 'a stream begins with a hello');
      return;
    }
    const fault = message?.$case === 'report' ? faultOf(message.value) : 'only reports follow the hello';
    if (message?.$case !== 'report' || fault !== null) {
      this.end(status.INVALID_ARGUMENT, fault ?? 'no report');
      return;
    }
    this.#waiting.push(message.value);
    // A host that does not keep to the window waits in its own socket.
    if (this.#waiting.length >= windowReports) this.#call.pause();
    this.#storeSoon(hello);
  }

  #begin(hello: ReportHello): void {
    if (!isUuid(hello.hostId) || !isUuid(hello.generation)) {
      this.end(status.INVALID_ARGUMENT, 'host and generation are named by UUIDs');
      return;
    }
    const refusal = this.#options.refusalOf?.(this.#call, hello) ?? null;
    if (refusal !== null) {
      this.end(status.PERMISSION_DENIED, refusal);
      return;
    }
    this.#onBegun(hello.hostId);
    this.#hello = hello;
    const { receivedThrough, gaps } = this.#options.store.begin(hello);
    this.#options.onTaken?.({ stored: [], gaps });
    this.#answer(receivedThrough);
  }

  /** One commit for many: each takes longer than the way of a report. */
  #storeSoon(hello: ReportHello): void {
    if (this.#isStoring) return;
    this.#isStoring = true;
    setTimeout(() => {
      this.#isStoring = false;
      this.#attempt(() => this.#store(hello));
    }, gatherMs);
  }

  #store({ hostId, generation }: ReportHello): void {
    const reports = this.#waiting;
    if (reports.length === 0) return;
    this.#waiting = [];
    const { receivedThrough, ...taken } = this.#options.store.add(hostId, generation, reports);
    this.#options.onTaken?.(taken);
    this.#answer(receivedThrough);
    this.#call.resume();
  }

  #answer(receivedThrough: number): void {
    this.#call.write({ acknowledgedThrough: BigInt(receivedThrough), window: windowReports });
  }

  #finish(): void {
    if (this.#hello !== undefined) this.#store(this.#hello);
    this.#isOver = true;
    this.#call.end();
  }
}

/** What is wrong with a report; null: nothing. */
function faultOf({ id, sequence, previousSequence }: Report): string | null {
  if (!isUuid(id)) return 'a report is named by a UUID';
  if (sequence < 1n || sequence > BigInt(Number.MAX_SAFE_INTEGER)) return `there is no report ${sequence}`;
  return previousSequence < sequence ? null : `report ${previousSequence} is not before ${sequence}`;
}
