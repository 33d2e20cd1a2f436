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

/** Something that is asked of the server while it negotiates. */
interface Question {
  readonly option: number;
  readonly what: string;
  readonly payload?: Buffer;
}

/**
 * Negotiates an export: structured replies, the metadata contexts, the export itself with its block sizes.
 *
 * Everything is asked for at once, before the server has said a word: a QEMU (7.2) whose NBD server is stopped while
 * it negotiates waits for that client for ever, and its guest with it, so negotiations must be short
 * (docs/BEHAVIOUR.md).
 *
 * @throws NBD_EXPORT_NOT_FOUND, NBD_CONTEXT_MISSING, NBD_SERVER_ERROR or NBD_PROTOCOL.
 */
export function* negotiate(request: NegotiationOptions): Filling<NbdExport> {
  const { exportName, metaContexts, send } = request;
  const structured = { option: protocol.options.structuredReply, what: 'structured replies' };
  const list = {
    option: protocol.options.listMetaContext,
    what: 'a list of metadata contexts',
    payload: protocol.encodeMetaContexts(exportName, []),
  };
  const select = {
    option: protocol.options.setMetaContext,
    what: 'metadata contexts',
    payload: protocol.encodeMetaContexts(exportName, metaContexts),
  };
  const go = {
    option: protocol.options.go,
    what: 'to open the export',
    payload: protocol.encodeGo(exportName),
  };
  const withContexts = metaContexts.length > 0;
  const questions: readonly Question[] = [structured, ...(withContexts ? [list, select] : []), go];
  send(Buffer.concat([protocol.clientFlags(), ...questions.map(encodeQuestion)]));

  const greeting = Buffer.alloc(protocol.greetingBytes);
  yield greeting;
  protocol.requireGreeting(greeting);
  yield* receiveAnswer(structured, unexpected);
  let contexts: ReadonlyMap<string, number> = new Map();
  if (withContexts) {
    const offered = yield* receiveList(list);
    contexts = yield* receiveContexts(select, metaContexts, offered);
  }
  return { ...(yield* receiveExport(go)), contexts };
}

function encodeQuestion({ option, payload }: Question): Buffer {
  return protocol.encodeOption(option, payload);
}

function* receiveReply(option: number): Filling<OptionReply> {
  const header = Buffer.alloc(protocol.optionReplyHeaderBytes);
  yield header;
  const { type, isError, payloadBytes } = protocol.decodeOptionReply(header, option);
  const payload = Buffer.alloc(payloadBytes);
  yield payload;
  return { type, isError, payload };
}

/** Hands every reply before the ACK to `use`. */
function* receiveAnswer(question: Question, use: (reply: OptionReply) => void): Filling<void> {
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

/** The names of the contexts that there are, for people. */
function* receiveList(question: Question): Filling<readonly string[]> {
  const names: string[] = [];
  yield* receiveAnswer(question, (reply) => {
    if (reply.type !== protocol.optionReplies.metaContext) unexpected(reply);
    if (names.length < listedMax) names.push(protocol.plainText(reply.payload.subarray(4)));
  });
  return names;
}

/** The contexts that are selected; every one of them must be there. */
function* receiveContexts(
  question: Question,
  wanted: readonly string[],
  offered: readonly string[],
): Filling<ReadonlyMap<string, number>> {
  const contexts = new Map<string, number>();
  yield* receiveAnswer(question, (reply) => {
    if (reply.type !== protocol.optionReplies.metaContext) unexpected(reply);
    const { id, name } = protocol.decodeMetaContext(reply.payload);
    if (!wanted.includes(name)) throw protocolError('a metadata context that was not asked for');
    if (contexts.has(name) || [...contexts.values()].includes(id))
      throw protocolError(`the metadata context ${name} is not the only one of its name and number`);
    contexts.set(name, id);
  });
  const missing = wanted.filter((name) => !contexts.has(name));
  if (missing.length === 0) return contexts;
  throw new NbdError('NBD_CONTEXT_MISSING', `the export does not offer ${missing.join(', ')}`, {
    hint: `it offers ${offered.join(', ') || 'none'}; start the server with the bitmap (qemu-nbd -B BITMAP)`,
  });
}

/** What the server says of the export; from its ACK on it takes requests. */
function* receiveExport(question: Question): Filling<Omit<NbdExport, 'contexts'>> {
  const found: {
    description?: Extract<protocol.ExportInfo, { kind: 'export' }>;
    blocks: Omit<Extract<protocol.ExportInfo, { kind: 'blockSize' }>, 'kind'>;
  } = { blocks: { minimumBytes: silentMinimumBytes, maximumBytes: protocol.payloadBytesMax } };
  yield* receiveAnswer(question, (reply) => {
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
