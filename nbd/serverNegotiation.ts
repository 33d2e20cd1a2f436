import type { CachedVolume } from './cachedVolume.ts';
import { protocolError } from './errors.ts';
import * as protocol from './protocol.ts';
import * as encoding from './serverProtocol.ts';

/** What a client and the server have agreed upon; requests follow. */
export interface Agreement {
  readonly volume: CachedVolume;
  readonly structured: boolean;
  /** The client may ask for the status of blocks. */
  readonly withAllocation: boolean;
}

export interface ServerNegotiationOptions {
  readonly volumes: ReadonlyMap<string, CachedVolume>;
  /** More options than this end the connection. */
  readonly optionsMax: number;
  readonly send: (bytes: Buffer) => void;
}

/** A protocol as it is read: yields how many bytes it wants next, and is given exactly those. */
export type Asking<T> = Generator<number, T, Buffer>;

export const allocationContext = 'base:allocation';
/** The id of the only context that we have. */
export const allocationId = 1;
/** An option that is longer is thrown away and refused. */
const optionBytesMax = 16 * 1024;
/** One that is longer than this is nobody's mistake. */
const droppedBytesMax = 1024 * 1024;
const dropAtOnceBytes = 4096;
const preferredBlockBytes = 4096;

/**
 * Negotiates with a client until it opens an export, or says that it does not want to (`null`). Nothing that is
 * wrong with a single option ends the negotiation; what cannot be understood does.
 *
 * @throws NBD_PROTOCOL
 */
export function* negotiateAsServer(options: ServerNegotiationOptions): Asking<Agreement | null> {
  options.send(encoding.encodeGreeting());
  const client = encoding.decodeClientFlags(yield encoding.clientFlagsBytes);
  const haggling = new Haggling(options, client);
  for (let count = 0; count < options.optionsMax; count += 1) {
    const { option, payloadBytes } = encoding.decodeOptionHeader(yield encoding.optionHeaderBytes);
    if (!client.fixedNewstyle && option !== protocol.options.exportName)
      throw protocolError(`option ${option} from a client that knows only the first one`);
    if (payloadBytes > optionBytesMax) {
      if (option === protocol.options.exportName) throw protocolError(`a name of ${payloadBytes} bytes`);
      yield* drop(payloadBytes);
      haggling.refuse(option, protocol.optionRefusals.tooBig, 'the option is too long');
      continue;
    }
    const end = haggling.answer(option, payloadBytes === 0 ? Buffer.alloc(0) : yield payloadBytes);
    if (end !== undefined) return end;
  }
  throw protocolError(`more than ${options.optionsMax} options`);
}

function* drop(lengthBytes: number): Asking<void> {
  if (lengthBytes > droppedBytesMax) throw protocolError(`an option of ${lengthBytes} bytes`);
  for (let left = lengthBytes; left > 0; ) left -= (yield Math.min(left, dropAtOnceBytes)).length;
}

/** The state of a negotiation, and the answers to options. */
class Haggling {
  readonly #options: ServerNegotiationOptions;
  readonly #client: encoding.ClientFlags;
  #structured = false;
  /** The export for which `base:allocation` was selected last. */
  #allocationOf: CachedVolume | undefined;

  constructor(options: ServerNegotiationOptions, client: encoding.ClientFlags) {
    this.#options = options;
    this.#client = client;
  }

  /** Answers an option; returns something when the negotiation is over. */
  answer(option: number, payload: Buffer): Agreement | null | undefined {
    const known = protocol.options;
    switch (option) {
      case known.exportName:
        return this.#openByName(payload);
      case known.abort:
        this.#acknowledge(option);
        return null;
      case known.list:
        return this.#list(payload);
      case known.structuredReply:
        return this.#agreeOnStructure(payload);
      case known.info:
      case known.go:
        return this.#describe(option, payload);
      case known.listMetaContext:
      case known.setMetaContext:
        return this.#contexts(option, payload);
      default:
        return this.refuse(option, protocol.optionRefusals.unsupported, 'the option is not known');
    }
  }

  refuse(option: number, refusal: number, text: string): undefined {
    this.#options.send(encoding.encodeOptionRefusal(option, refusal, text));
  }

  #acknowledge(option: number): undefined {
    this.#options.send(encoding.encodeOptionReply(option, protocol.optionReplies.ack));
  }

  #malformed(option: number): undefined {
    return this.refuse(option, protocol.optionRefusals.invalid, 'the option is malformed');
  }

  #unknown(option: number): undefined {
    return this.refuse(option, protocol.optionRefusals.unknown, 'there is no such export');
  }

  /** The old way: there is no answer that says no. */
  #openByName(payload: Buffer): Agreement {
    const volume = this.#options.volumes.get(payload.toString('utf8'));
    if (volume === undefined) throw protocolError('EXPORT_NAME with the name of no export');
    const { noZeroes } = this.#client;
    this.#options.send(encoding.encodeExportName(volume.sizeBytes, this.#flags(), noZeroes));
    return this.#agreement(volume);
  }

  #list(payload: Buffer): undefined {
    const option = protocol.options.list;
    if (payload.length > 0) return this.#malformed(option);
    for (const name of this.#options.volumes.keys())
      this.#options.send(
        encoding.encodeOptionReply(option, protocol.optionReplies.server, encoding.encodeListed(name)),
      );
    return this.#acknowledge(option);
  }

  #agreeOnStructure(payload: Buffer): undefined {
    const option = protocol.options.structuredReply;
    if (payload.length > 0) return this.#malformed(option);
    this.#structured = true;
    return this.#acknowledge(option);
  }

  #describe(option: number, payload: Buffer): Agreement | undefined {
    const name = encoding.decodeExportQuery(payload);
    if (name === undefined) return this.#malformed(option);
    const volume = this.#options.volumes.get(name);
    if (volume === undefined) return this.#unknown(option);
    // All that there is to say, asked for or not, as QEMU's server does: there is no smallest block to insist on.
    for (const info of [
      encoding.encodeExportInfo(volume.sizeBytes, this.#flags()),
      encoding.encodeBlockSizes(1, preferredBlockBytes, protocol.payloadBytesMax),
    ])
      this.#options.send(encoding.encodeOptionReply(option, protocol.optionReplies.info, info));
    this.#acknowledge(option);
    return option === protocol.options.go ? this.#agreement(volume) : undefined;
  }

  #contexts(option: number, payload: Buffer): undefined {
    const isSelection = option === protocol.options.setMetaContext;
    if (isSelection) this.#allocationOf = undefined; // also when it fails, says the specification
    const query = encoding.decodeContextQuery(payload);
    if (query === undefined || !this.#structured) return this.#malformed(option);
    const volume = this.#options.volumes.get(query.exportName);
    if (volume === undefined) return this.#unknown(option);
    const { queries } = query;
    const isMeant = isSelection
      ? queries.includes(allocationContext)
      : queries.length === 0 || queries.includes(allocationContext) || queries.includes('base:');
    if (isMeant) {
      if (isSelection) this.#allocationOf = volume;
      const context = encoding.encodeMetaContext(isSelection ? allocationId : 0, allocationContext);
      this.#options.send(encoding.encodeOptionReply(option, protocol.optionReplies.metaContext, context));
    }
    return this.#acknowledge(option);
  }

  /** Nothing is ever written, so a flush has nothing to do, and all connections show the same bytes. */
  #flags(): number {
    const { hasFlags, readOnly, sendFlush, sendDontFragment, canMultiConn } = protocol.transmissionFlags;
    return hasFlags | readOnly | sendFlush | canMultiConn | (this.#structured ? sendDontFragment : 0);
  }

  #agreement(volume: CachedVolume): Agreement {
    return { volume, structured: this.#structured, withAllocation: this.#allocationOf === volume };
  }
}
