import type { ClientDuplexStream } from '@grpc/grpc-js';
import {
  type DeliverRequest,
  type DeliverResponse,
  GenerationReason,
  type ReportHello,
} from '../../proto/generated/stillpoint/v1/report.ts';
import { documentPath } from '../../common/documents.ts';
import { Wake } from '../../common/wake.ts';
import { ReportError } from './errors.ts';
import type { Outbox } from './outbox.ts';
import type { GenerationReason as GenerationName, OutboxState } from './outboxTables.ts';

/** So much is on its way at the most, whatever the receiver allows: it stays in the outbox until it has arrived. */
const inFlightBytesMax = 1024 * 1024;
const batchCount = 64;
/** A receiver that says nothing for so long after the hello is not one. */
const answerMs = 30_000;

/** Who reports. */
export interface ReportingHost {
  /** UUID. */
  readonly id: string;
  readonly name: string;
  readonly version: string;
}

export type DeliveryStream = ClientDuplexStream<DeliverRequest, DeliverResponse>;

/** What may be sent and acknowledged on one connection. */
interface Position {
  /** The last report that was sent on this connection, or that the receiver had before. */
  sent: number;
  acknowledged: number;
  /** Those that are on their way. */
  inFlight: { readonly sequence: number; readonly sizeBytes: number }[];
  window: number;
}

/** Delivers reports on one stream, as fast as the receiver wants them and no faster. */
export class Delivery {
  readonly #stream: DeliveryStream;
  readonly #outbox: Outbox;
  readonly #wake: Wake;
  readonly #signal: AbortSignal;
  readonly #onAcknowledged: () => void;
  readonly #onGeneration: (why: string) => void;
  #position: Position | undefined;
  #answer: DeliverResponse | undefined;
  #failure: Error | undefined;
  /** What is written would only wait in our own memory. */
  #isBlocked = false;

  /**
   * @param options.onAcknowledged the receiver has taken something
   * @param options.onGeneration the outbox has begun to count anew
   */
  constructor(
    stream: DeliveryStream,
    outbox: Outbox,
    options: {
      readonly signal: AbortSignal;
      readonly onAcknowledged: () => void;
      readonly onGeneration: (why: string) => void;
    },
  ) {
    this.#stream = stream;
    this.#outbox = outbox;
    this.#signal = options.signal;
    this.#onAcknowledged = options.onAcknowledged;
    this.#onGeneration = options.onGeneration;
    this.#wake = new Wake(options.signal);
    stream
      .on('data', (answer: DeliverResponse) => {
        this.#answer = answer;
        this.#wake.up();
      })
      .on('drain', () => {
        this.#isBlocked = false;
        this.#wake.up();
      })
      .on('error', (error: Error) => this.fail(error))
      .on('end', () => this.fail(new Error('the controller has ended the stream')));
  }

  /** There may be something to send. */
  wake(): void {
    this.#wake.up();
  }

  /**
   * Returns after the signal only.
   * @throws ReportError; what the stream failed with
   */
  async run(host: ReportingHost): Promise<void> {
    const patience = setTimeout(() => this.fail(new Error('the controller does not answer')), answerMs);
    try {
      this.#stream.write({ message: { $case: 'hello', value: helloOf(host, this.#outbox.state) } });
      while (!this.#signal.aborted) {
        if (this.#failure !== undefined) throw this.#failure;
        if (this.#takeAnswer()) clearTimeout(patience);
        if (!this.#send()) await this.#wake.sleep();
      }
    } finally {
      clearTimeout(patience);
      this.#wake[Symbol.dispose]();
      this.#stream.cancel();
    }
  }

  /** Nothing more is sent: `run` throws this. */
  fail(error: Error): void {
    this.#failure ??= error;
    this.#wake.up();
  }

  /** @returns whether there was one */
  #takeAnswer(): boolean {
    const answer = this.#answer;
    if (answer === undefined) return false;
    this.#answer = undefined;
    const through = Number(answer.acknowledgedThrough);
    const position = (this.#position ??= this.#begin(through));
    if (through > position.sent) throw refused(`acknowledges report ${through}, which was not sent`);
    if (through < position.acknowledged) throw refused(`takes back its acknowledgement of ${through + 1}`);
    if (through > position.acknowledged) {
      this.#outbox.acknowledge(through);
      this.#onAcknowledged();
      position.inFlight = position.inFlight.filter(({ sequence }) => sequence > through);
      position.acknowledged = through;
    }
    position.window = answer.window;
    return true;
  }

  /** The first answer says what has arrived on earlier connections. */
  #begin(through: number): Position {
    const { sentThrough, acknowledgedThrough } = this.#outbox.state;
    if (through > sentThrough)
      throw this.#anew(
        'set-back',
        `the controller has reports up to ${through}, of which the outbox knows ${sentThrough}: it was set back to an earlier state`,
      );
    // What was acknowledged once is not here any more: only what it is about can be told again.
    if (through < acknowledgedThrough)
      throw this.#anew(
        'receiver-set-back',
        `the controller has reports up to ${through}, and a controller has acknowledged ${acknowledgedThrough}: it is another one, or was set back to an earlier state`,
      );
    if (through > acknowledgedThrough) this.#outbox.acknowledge(through);
    return { sent: through, acknowledged: through, inFlight: [], window: 0 };
  }

  /** @returns what ends this stream: a generation is named at the beginning of one */
  #anew(reason: GenerationName, message: string): ReportError {
    this.#outbox.beginGeneration(reason);
    this.#onGeneration(message);
    return new ReportError('CONTROLLER_UNREACHABLE', message, { retryable: true });
  }

  /** @returns whether something was sent */
  #send(): boolean {
    const position = this.#position;
    if (position === undefined || this.#isBlocked) return false;
    const inFlightBytes = position.inFlight.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const count = Math.min(position.window - position.inFlight.length, batchCount);
    const bytes = inFlightBytesMax - inFlightBytes;
    if (count <= 0 || bytes <= 0) return false;
    const reports = this.#outbox.pending(position.sent, { count, bytes });
    const last = reports.at(-1);
    if (last === undefined) return false;
    this.#outbox.markSent(last.sequence);
    for (const { report, sequence, sizeBytes } of reports) {
      this.#isBlocked = !this.#stream.write({ message: { $case: 'report', value: report } });
      position.inFlight.push({ sequence, sizeBytes });
      position.sent = sequence;
    }
    return true;
  }
}

function refused(what: string): ReportError {
  return new ReportError('CONTROLLER_REFUSED', `the controller breaks the protocol: it ${what}`, {
    hint: `${documentPath('docs/REPORTS.md')} says what a controller answers`,
  });
}

const reasons = {
  'no-outbox': GenerationReason.GENERATION_REASON_NO_OUTBOX,
  damaged: GenerationReason.GENERATION_REASON_DAMAGED,
  'set-back': GenerationReason.GENERATION_REASON_SET_BACK,
  'receiver-set-back': GenerationReason.GENERATION_REASON_RECEIVER_SET_BACK,
} as const;

function helloOf(host: ReportingHost, state: OutboxState): ReportHello {
  return {
    hostId: host.id,
    hostName: host.name,
    agentVersion: host.version,
    generation: state.generation,
    generationReason: reasons[state.reason],
    generationTime: new Date(state.begunAtMs),
  };
}
