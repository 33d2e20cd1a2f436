import { NbdError, protocolError } from './errors.ts';
import * as protocol from './protocol.ts';

/** What the negotiation found out about an export. */
export interface NbdExport {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Several connections see the same bytes, so that reads may be spread over them. */
  readonly canMultiConn: boolean;
  /** Offsets and lengths of requests are multiples of this. */
  readonly minimumBlockBytes: number;
  /** No read asks for more at once. */
  readonly maximumReadBytes: number;
  /** Ids of the contexts that were asked for, by name. */
  readonly contexts: ReadonlyMap<string, number>;
}

export interface NegotiationOptions {
  readonly exportName: string;
  readonly metaContexts: readonly string[];
  readonly send: (bytes: Buffer) => void;
}

/**
 * A protocol as it is read: yields a buffer, and goes on when bytes of the server have filled it. It never
 * waits for anything else, so nothing has to be kept aside between socket and reader.
 */
export type Filling<T> = Generator<Buffer, T, void>;

/** What a server without a word about block sizes can be expected to serve (specification: defaults). */
const silentMinimumBytes = 512;
/** Contexts that a hint names; nobody reads more, and a server could send them for ever. */
const listedMax = 32;

/** One reply to an option. */
interface OptionReply {
  readonly type: number;
  readonly isError: boolean;
  readonly payload: Buffer;
}

/**
 * Negotiates an export: structured replies, the metadata contexts, the export itself with its block sizes.
 *
 * @throws NBD_EXPORT_NOT_FOUND, NBD_CONTEXT_MISSING, NBD_SERVER_ERROR or NBD_PROTOCOL.
 */
export function* negotiate(request: NegotiationOptions): Filling<NbdExport> {
  const greeting = Buffer.alloc(protocol.greetingBytes);
  yield greeting;
  request.send(protocol.answerGreeting(greeting));
  yield* agreeOnStructuredReplies(request);
  const contexts =
    request.metaContexts.length > 0 ? yield* agreeOnContexts(request) : new Map<string, number>();
  return { ...(yield* enter(request)), contexts };
}

function* receiveReply(option: number): Filling<OptionReply> {
  const header = Buffer.alloc(protocol.optionReplyHeaderBytes);
  yield header;
  const { type, isError, payloadBytes } = protocol.decodeOptionReply(header, option);
  const payload = Buffer.alloc(payloadBytes);
  yield payload;
  return { type, isError, payload };
}

/** Sends an option and hands every reply before the ACK to `use`. */
function* ask(
  request: NegotiationOptions,
  question: { readonly option: number; readonly what: string; readonly payload?: Buffer },
  use: (reply: OptionReply) => void,
): Filling<void> {
  request.send(protocol.encodeOption(question.option, question.payload));
  for (;;) {
    const reply = yield* receiveReply(question.option);
    if (reply.isError) throw protocol.refusedOption(question.what, reply.type, reply.payload);
    if (reply.type === protocol.optionReplies.ack) return;
    use(reply);
  }
}

const unexpected = (reply: OptionReply): never => {
  throw protocolError(`an option reply of type ${reply.type} was not asked for`);
};

function* agreeOnStructuredReplies(request: NegotiationOptions): Filling<void> {
  const question = { option: protocol.options.structuredReply, what: 'structured replies' };
  yield* ask(request, question, unexpected);
}

/** Selects the contexts; every one of them must be there. */
function* agreeOnContexts(request: NegotiationOptions): Filling<ReadonlyMap<string, number>> {
  const { exportName, metaContexts } = request;
  const contexts = new Map<string, number>();
  const question = {
    option: protocol.options.setMetaContext,
    what: 'metadata contexts',
    payload: protocol.encodeMetaContexts(exportName, metaContexts),
  };
  yield* ask(request, question, (reply) => {
    if (reply.type !== protocol.optionReplies.metaContext) unexpected(reply);
    const { id, name } = protocol.decodeMetaContext(reply.payload);
    if (!metaContexts.includes(name)) throw protocolError('a metadata context that was not asked for');
    if (contexts.has(name) || [...contexts.values()].includes(id))
      throw protocolError(`the metadata context ${name} is not the only one of its name and number`);
    contexts.set(name, id);
  });
  const missing = metaContexts.filter((name) => !contexts.has(name));
  if (missing.length === 0) return contexts;
  const offered = yield* listContexts(request);
  throw new NbdError('NBD_CONTEXT_MISSING', `the export does not offer ${missing.join(', ')}`, {
    hint: `it offers ${offered.join(', ') || 'none'}; start the server with the bitmap (qemu-nbd -B BITMAP)`,
  });
}

function* listContexts(request: NegotiationOptions): Filling<readonly string[]> {
  const names: string[] = [];
  const question = {
    option: protocol.options.listMetaContext,
    what: 'a list of metadata contexts',
    payload: protocol.encodeMetaContexts(request.exportName, []),
  };
  yield* ask(request, question, (reply) => {
    if (reply.type !== protocol.optionReplies.metaContext) unexpected(reply);
    if (names.length < listedMax) names.push(protocol.plainText(reply.payload.subarray(4)));
  });
  return names;
}

/** Opens the export; from its ACK on the server takes requests. */
function* enter(request: NegotiationOptions): Filling<Omit<NbdExport, 'contexts'>> {
  const found: {
    description?: Extract<protocol.ExportInfo, { kind: 'export' }>;
    blocks: Omit<Extract<protocol.ExportInfo, { kind: 'blockSize' }>, 'kind'>;
  } = { blocks: { minimumBytes: silentMinimumBytes, maximumBytes: protocol.payloadBytesMax } };
  const question = {
    option: protocol.options.go,
    what: 'to open the export',
    payload: protocol.encodeGo(request.exportName),
  };
  yield* ask(request, question, (reply) => {
    if (reply.type !== protocol.optionReplies.info) unexpected(reply);
    const info = protocol.decodeInfo(reply.payload);
    if (info.kind === 'export') found.description = info;
    if (info.kind === 'blockSize') found.blocks = info;
  });
  if (found.description === undefined)
    throw protocolError('the server opened the export without telling its size');
  const { sizeBytes, readOnly, canMultiConn } = found.description;
  const minimumBlockBytes = found.blocks.minimumBytes;
  const maximumBytes = Math.min(found.blocks.maximumBytes, protocol.payloadBytesMax);
  const maximumReadBytes = maximumBytes - (maximumBytes % minimumBlockBytes);
  return { sizeBytes, readOnly, canMultiConn, minimumBlockBytes, maximumReadBytes };
}
