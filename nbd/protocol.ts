import { NbdError, protocolError } from './errors.ts';

/*
 * The NBD protocol as its public specification has it (github.com/NetworkBlockDevice/nbd, doc/proto.md): fixed
 * newstyle negotiation, structured replies, metadata contexts. Pure functions between bytes and values; every
 * length that a server names is compared with a cap before anybody makes room for it.
 */

export const greetingMagic = 0x4e42444d41474943n; // NBDMAGIC
export const optionMagic = 0x49484156454f5054n; // IHAVEOPT
export const optionReplyMagic = 0x3e889045565a9n;
export const requestMagic = 0x25609513;
export const simpleReplyMagic = 0x67446698;
export const structuredReplyMagic = 0x668e33ef;

export const options = {
  exportName: 1,
  abort: 2,
  list: 3,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;
export const optionReplies = { ack: 1, server: 2, info: 3, metaContext: 4 } as const;
/** Refusals of an option; each has the error bit of option replies, too. */
export const optionRefusals = { unsupported: 1, invalid: 3, unknown: 6, tooBig: 9 } as const;
export const infos = { export: 0, blockSize: 3 } as const;
export const commands = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  writeZeroes: 6,
  blockStatus: 7,
} as const;
/** Flags of a request: one content chunk only (read), one descriptor only (status). */
export const commandFlags = { dontFragment: 1 << 2, requestOne: 1 << 3 } as const;
export const chunks = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;
/** The protocol's error numbers, as far as our server sends them. */
export const errnos = { EPERM: 1, EIO: 5, EINVAL: 22, EOVERFLOW: 75 } as const;

export const handshakeFlags = { fixedNewstyle: 1, noZeroes: 2 } as const;
const ourFlags = handshakeFlags.fixedNewstyle | handshakeFlags.noZeroes;
export const transmissionFlags = {
  hasFlags: 1,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendDontFragment: 1 << 7,
  canMultiConn: 1 << 8,
} as const;
/** Set in every option reply that is an error. */
export const optionErrorBit = 0x8000_0000;
/** Set in every chunk type that is an error. */
const chunkErrorBit = 0x8000;
export const chunkDone = 1;

/** Flags of a `base:allocation` descriptor. A hole that is not zero reads as anything. */
export const allocation = { hole: 1, zero: 2 } as const;
/** Flag of a `qemu:dirty-bitmap:*` descriptor. */
export const dirtyFlag = 1;

/** What the protocol lets any string have. */
export const stringBytesMax = 4096;
/** No client may ask for more, and no server has to send more, than this in one request. */
export const payloadBytesMax = 32 * 1024 * 1024;
/** The largest answer to an option that we know: a context or an error with their texts, with room to spare. */
const optionReplyBytesMax = 16 * 1024;
/** The largest smallest block that the protocol allows. */
const minimumBlockBytesMax = 64 * 1024;

export const greetingBytes = 18;
export const optionReplyHeaderBytes = 20;
export const chunkHeaderBytes = 20;
export const chunkOffsetBytes = 8;
export const requestBytes = 28;

const bigMagic = (magic: bigint): string => `0x${magic.toString(16).padStart(16, '0')}`;

/** A 64-bit number that counts bytes; beyond 2^53 nobody has a disk. */
function safeNumber(bytes: Buffer, at: number, what: string): number {
  const value = bytes.readBigUInt64BE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw protocolError(`${what} of ${value} is out of reach`);
  return Number(value);
}

/** A text of the server, fit for a message on a terminal. */
export function plainText(bytes: Buffer): string {
  return bytes
    .toString('utf8', 0, stringBytesMax)
    .replaceAll(/[\p{C}\s]+/gu, ' ')
    .trim();
}

/** @throws NBD_PROTOCOL if this is no NBD server, or one that cannot negotiate like that. */
export function requireGreeting(greeting: Buffer): void {
  const magic = greeting.readBigUInt64BE(0);
  if (magic !== greetingMagic) throw protocolError(`not an NBD server: it greets with ${bigMagic(magic)}`);
  const offered = greeting.readUInt16BE(16);
  if (greeting.readBigUInt64BE(8) !== optionMagic || (offered & ourFlags) !== ourFlags)
    throw protocolError('the server knows no fixed newstyle negotiation');
}

/** How we negotiate. */
export function clientFlags(): Buffer {
  const flags = Buffer.alloc(4);
  flags.writeUInt32BE(ourFlags);
  return flags;
}

export function encodeOption(option: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(16);
  header.writeBigUInt64BE(optionMagic, 0);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(payload.length, 12);
  return Buffer.concat([header, payload]);
}

function lengthAndText(text: string): Buffer {
  const bytes = Buffer.from(text);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

/** Payload of LIST_META_CONTEXT and SET_META_CONTEXT; listing without a name lists everything. */
export function encodeMetaContexts(exportName: string, contexts: readonly string[]): Buffer {
  const count = Buffer.alloc(4);
  count.writeUInt32BE(contexts.length);
  return Buffer.concat([lengthAndText(exportName), count, ...contexts.map(lengthAndText)]);
}

/** Payload of GO: asks for the block sizes, which promises to respect them. */
export function encodeGo(exportName: string): Buffer {
  const wanted = Buffer.alloc(4);
  wanted.writeUInt16BE(1, 0);
  wanted.writeUInt16BE(infos.blockSize, 2);
  return Buffer.concat([lengthAndText(exportName), wanted]);
}

export interface OptionReplyHeader {
  readonly type: number;
  readonly isError: boolean;
  readonly payloadBytes: number;
}

/** @throws NBD_PROTOCOL unless this is a reply to `option` of a reasonable length. */
export function decodeOptionReply(header: Buffer, option: number): OptionReplyHeader {
  const magic = header.readBigUInt64BE(0);
  if (magic !== optionReplyMagic) throw protocolError(`an option reply starts with ${bigMagic(magic)}`);
  const answered = header.readUInt32BE(8);
  if (answered !== option) throw protocolError(`a reply to option ${answered} came for option ${option}`);
  const type = header.readUInt32BE(12);
  const payloadBytes = header.readUInt32BE(16);
  if (payloadBytes > optionReplyBytesMax) throw protocolError(`an option reply of ${payloadBytes} bytes`);
  return { type, isError: type >= optionErrorBit, payloadBytes };
}

/** What the protocol calls its refusals of an option, by their number without the error bit. */
const refusals: readonly string[] = [
  '',
  'the server does not know it',
  'forbidden by policy',
  'the server finds it malformed',
  'not on this platform',
  'TLS is required',
  'unknown export',
  'the server is shutting down',
  'block sizes are required',
  'too big',
];
const refusedUnknown = 6;
const refusedShutdown = 7;

/** The error for an option that the server refused. */
export function refusedOption(what: string, type: number, payload: Buffer): NbdError {
  const number = type - optionErrorBit;
  const text = plainText(payload);
  const reason = `${refusals[number] ?? `refusal ${number}`}${text === '' ? '' : `: ${text}`}`;
  if (number === refusedUnknown)
    return new NbdError('NBD_EXPORT_NOT_FOUND', `there is no such export (${reason})`);
  const retryable = number === refusedShutdown;
  return new NbdError('NBD_SERVER_ERROR', `the server refused ${what} (${reason})`, { retryable });
}

/** The parts of an export's description that we use; `other` is anything else. */
export type ExportInfo =
  | {
      readonly kind: 'export';
      readonly sizeBytes: number;
      readonly readOnly: boolean;
      readonly canMultiConn: boolean;
    }
  | { readonly kind: 'blockSize'; readonly minimumBytes: number; readonly maximumBytes: number }
  | { readonly kind: 'other' };

/** @throws NBD_PROTOCOL for a length that its kind rules out, and for impossible block sizes. */
export function decodeInfo(payload: Buffer): ExportInfo {
  if (payload.length < 2) throw protocolError('information about the export without a type');
  const type = payload.readUInt16BE(0);
  const expect = (length: number): void => {
    if (payload.length !== length) throw protocolError(`information ${type} has ${payload.length} bytes`);
  };
  if (type === infos.export) {
    expect(12);
    const flags = payload.readUInt16BE(10);
    const has = (flag: number): boolean => (flags & transmissionFlags.hasFlags) !== 0 && (flags & flag) !== 0;
    return {
      kind: 'export',
      sizeBytes: safeNumber(payload, 2, 'an export'),
      readOnly: has(transmissionFlags.readOnly),
      canMultiConn: has(transmissionFlags.canMultiConn),
    };
  }
  if (type !== infos.blockSize) return { kind: 'other' };
  expect(14);
  const minimumBytes = payload.readUInt32BE(2);
  const maximumBytes = payload.readUInt32BE(10);
  const isPowerOfTwo = minimumBytes > 0 && (minimumBytes & (minimumBytes - 1)) === 0;
  if (!isPowerOfTwo || minimumBytes > minimumBlockBytesMax || maximumBytes < minimumBytes)
    throw protocolError(`blocks of ${minimumBytes} to ${maximumBytes} bytes`);
  return { kind: 'blockSize', minimumBytes, maximumBytes };
}

export interface MetaContext {
  readonly id: number;
  readonly name: string;
}

export function decodeMetaContext(payload: Buffer): MetaContext {
  if (payload.length <= 4 || payload.length > 4 + stringBytesMax)
    throw protocolError(`a metadata context of ${payload.length} bytes`);
  return { id: payload.readUInt32BE(0), name: payload.toString('utf8', 4) };
}

export interface RequestHeader {
  readonly command: number;
  /** Comes back in every chunk of the reply. */
  readonly cookie: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export const twoTo32 = 0x1_0000_0000;

export function encodeRequest(request: RequestHeader): Buffer {
  const bytes = Buffer.alloc(requestBytes); // the command's flags stay 0: of a status we want every extent
  bytes.writeUInt32BE(requestMagic, 0);
  bytes.writeUInt16BE(request.command, 6);
  bytes.writeUInt32BE(Math.floor(request.cookie / twoTo32), 8);
  bytes.writeUInt32BE(request.cookie % twoTo32, 12);
  bytes.writeUInt32BE(Math.floor(request.offsetBytes / twoTo32), 16);
  bytes.writeUInt32BE(request.offsetBytes % twoTo32, 20);
  bytes.writeUInt32BE(request.lengthBytes, 24);
  return bytes;
}

export interface ChunkHeader {
  readonly type: number;
  readonly isError: boolean;
  /** Nothing follows for this request. */
  readonly done: boolean;
  readonly cookie: number;
  readonly payloadBytes: number;
}

/**
 * @throws NBD_PROTOCOL for anything but a structured reply with a payload that its type can have. After
 *   structured replies were agreed upon, a read or a status may not be answered by a simple one.
 */
export function decodeChunkHeader(header: Buffer): ChunkHeader {
  const magic = header.readUInt32BE(0);
  if (magic === simpleReplyMagic)
    throw protocolError('a simple reply where a structured one was agreed upon');
  if (magic !== structuredReplyMagic) throw protocolError(`a reply starts with 0x${magic.toString(16)}`);
  const flags = header.readUInt16BE(4);
  const type = header.readUInt16BE(6);
  const cookie = header.readUInt32BE(8) * twoTo32 + header.readUInt32BE(12);
  const payloadBytes = header.readUInt32BE(16);
  const isError = (type & chunkErrorBit) !== 0;
  const done = (flags & chunkDone) !== 0;
  if (!hasPossibleLength(type, isError, payloadBytes))
    throw protocolError(`a chunk of type ${type} with ${payloadBytes} bytes`);
  if (type === chunks.none && !done)
    throw protocolError('a chunk that says nothing and does not end its reply');
  return { type, isError, done, cookie, payloadBytes };
}

function hasPossibleLength(type: number, isError: boolean, bytes: number): boolean {
  if (isError) return bytes >= 6 && bytes <= 6 + stringBytesMax + 8;
  switch (type) {
    case chunks.none:
      return bytes === 0;
    case chunks.offsetData:
      return bytes > chunkOffsetBytes && bytes <= chunkOffsetBytes + payloadBytesMax;
    case chunks.offsetHole:
      return bytes === chunkOffsetBytes + 4;
    case chunks.blockStatus:
      return bytes >= 12 && bytes <= 4 + payloadBytesMax && (bytes - 4) % 8 === 0;
    default:
      throw protocolError(`a chunk of unknown type ${type}`);
  }
}

/** The offset with which the payload of a data or hole chunk starts. */
export function decodeOffset(payload: Buffer): number {
  return safeNumber(payload, 0, 'an offset');
}

/** The length of a hole, behind its offset. */
export function decodeHoleLength(payload: Buffer): number {
  const lengthBytes = payload.readUInt32BE(chunkOffsetBytes);
  if (lengthBytes === 0) throw protocolError('a hole of no length');
  return lengthBytes;
}

/** Number and text of an error chunk. */
export function decodeError(
  payload: Buffer,
  type: number,
): { readonly errno: number; readonly message: string } {
  const errno = payload.readUInt32BE(0);
  const messageBytes = payload.readUInt16BE(4);
  const restBytes = payload.length - 6 - messageBytes;
  if (errno === 0 || restBytes < 0 || (type === chunks.errorOffset && restBytes !== 8))
    throw protocolError(`a malformed error chunk of ${payload.length} bytes`);
  return { errno, message: plainText(payload.subarray(6, 6 + messageBytes)) };
}
