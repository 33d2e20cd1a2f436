import { protocolError } from './errors.ts';
import * as protocol from './protocol.ts';

/*
 * The server's side of the protocol: pure functions between the bytes of a client and values, and between values and
 * the bytes for a client. The constants are in protocol.ts.
 */

export const clientFlagsBytes = 4;
export const optionHeaderBytes = 16;
/** What the old way of opening an export appends unless the client does without. */
const exportNamePaddingBytes = 124;

/** How the client wants to negotiate. */
export interface ClientFlags {
  /** Without it nothing but EXPORT_NAME is understood. */
  readonly fixedNewstyle: boolean;
  readonly noZeroes: boolean;
}

/** @throws NBD_PROTOCOL for a flag that no server has offered. */
export function decodeClientFlags(bytes: Buffer): ClientFlags {
  const { fixedNewstyle, noZeroes } = protocol.handshakeFlags;
  const flags = bytes.readUInt32BE(0);
  if ((flags & ~(fixedNewstyle | noZeroes)) !== 0)
    throw protocolError(`client flags 0x${flags.toString(16)}`);
  return { fixedNewstyle: (flags & fixedNewstyle) !== 0, noZeroes: (flags & noZeroes) !== 0 };
}

export interface OptionHeader {
  readonly option: number;
  readonly payloadBytes: number;
}

/** @throws NBD_PROTOCOL unless an option starts here. */
export function decodeOptionHeader(header: Buffer): OptionHeader {
  const magic = header.readBigUInt64BE(0);
  if (magic !== protocol.optionMagic) throw protocolError(`an option starts with 0x${magic.toString(16)}`);
  return { option: header.readUInt32BE(8), payloadBytes: header.readUInt32BE(12) };
}

/** Reads a payload from its start to its end; every step says whether there was enough. */
class PayloadReader {
  readonly #payload: Buffer;
  #at = 0;

  constructor(payload: Buffer) {
    this.#payload = payload;
  }

  get isAtEnd(): boolean {
    return this.#at === this.#payload.length;
  }

  number(bytes: 2 | 4): number | undefined {
    if (this.#at + bytes > this.#payload.length) return undefined;
    const value = this.#payload.readUIntBE(this.#at, bytes);
    this.#at += bytes;
    return value;
  }

  /** A text behind its length. */
  text(): string | undefined {
    const length = this.number(4);
    if (length === undefined || length > protocol.stringBytesMax) return undefined;
    if (this.#at + length > this.#payload.length) return undefined;
    const text = this.#payload.toString('utf8', this.#at, this.#at + length);
    this.#at += length;
    return text;
  }
}

/** The export that GO or INFO names; `undefined` for a malformed payload. What is asked of it, we tell in any case. */
export function decodeExportQuery(payload: Buffer): string | undefined {
  const reader = new PayloadReader(payload);
  const exportName = reader.text();
  const count = reader.number(2) ?? -1;
  for (let index = 0; index < count; index += 1) if (reader.number(2) === undefined) return undefined;
  return count >= 0 && reader.isAtEnd ? exportName : undefined;
}

export interface ContextQuery {
  readonly exportName: string;
  readonly queries: readonly string[];
}

/** What LIST_META_CONTEXT and SET_META_CONTEXT ask for; `undefined` for a malformed payload. */
export function decodeContextQuery(payload: Buffer): ContextQuery | undefined {
  const reader = new PayloadReader(payload);
  const exportName = reader.text();
  const count = reader.number(4);
  if (exportName === undefined || count === undefined) return undefined;
  const queries: string[] = [];
  // Each one takes bytes, so a count that is a lie ends the loop early.
  for (let index = 0; index < count; index += 1) {
    const query = reader.text();
    if (query === undefined) return undefined;
    queries.push(query);
  }
  return reader.isAtEnd ? { exportName, queries } : undefined;
}

/** The first words of the server. */
export function encodeGreeting(): Buffer {
  const greeting = Buffer.alloc(protocol.greetingBytes);
  greeting.writeBigUInt64BE(protocol.greetingMagic, 0);
  greeting.writeBigUInt64BE(protocol.optionMagic, 8);
  greeting.writeUInt16BE(protocol.handshakeFlags.fixedNewstyle | protocol.handshakeFlags.noZeroes, 16);
  return greeting;
}

export function encodeOptionReply(option: number, type: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(protocol.optionReplyHeaderBytes);
  header.writeBigUInt64BE(protocol.optionReplyMagic, 0);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(type, 12);
  header.writeUInt32BE(payload.length, 16);
  return Buffer.concat([header, payload]);
}

/** One of `optionRefusals`, with a text for people. */
export function encodeOptionRefusal(option: number, refusal: number, text: string): Buffer {
  return encodeOptionReply(option, protocol.optionErrorBit + refusal, Buffer.from(text));
}

/** Payload that describes an export in the answer to GO or INFO. */
export function encodeExportInfo(sizeBytes: number, flags: number): Buffer {
  const info = Buffer.alloc(12);
  info.writeUInt16BE(protocol.infos.export, 0);
  info.writeBigUInt64BE(BigInt(sizeBytes), 2);
  info.writeUInt16BE(flags, 10);
  return info;
}

/** Payload with the block sizes in the answer to GO or INFO. */
export function encodeBlockSizes(minimumBytes: number, preferredBytes: number, maximumBytes: number): Buffer {
  const info = Buffer.alloc(14);
  info.writeUInt16BE(protocol.infos.blockSize, 0);
  info.writeUInt32BE(minimumBytes, 2);
  info.writeUInt32BE(preferredBytes, 6);
  info.writeUInt32BE(maximumBytes, 10);
  return info;
}

/** The whole answer to EXPORT_NAME, which has no header. */
export function encodeExportName(sizeBytes: number, flags: number, noZeroes: boolean): Buffer {
  const answer = Buffer.alloc(10 + (noZeroes ? 0 : exportNamePaddingBytes));
  answer.writeBigUInt64BE(BigInt(sizeBytes), 0);
  answer.writeUInt16BE(flags, 8);
  return answer;
}

/** Payload of one entry in the answer to LIST. */
export function encodeListed(exportName: string): Buffer {
  const name = Buffer.from(exportName);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(name.length);
  return Buffer.concat([length, name]);
}

export function encodeMetaContext(id: number, name: string): Buffer {
  const number = Buffer.alloc(4);
  number.writeUInt32BE(id);
  return Buffer.concat([number, Buffer.from(name)]);
}

/** A request as a client has sent it. */
export interface ClientRequest {
  readonly command: number;
  readonly flags: number;
  /** Two halves of the 64 bits that come back in every reply. */
  readonly cookieHigh: number;
  readonly cookieLow: number;
  /** Inexact beyond 2^53, where no volume ends. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** @throws NBD_PROTOCOL unless a request starts here: nobody knows where the next one would. */
export function decodeRequest(header: Buffer): ClientRequest {
  const magic = header.readUInt32BE(0);
  if (magic !== protocol.requestMagic) throw protocolError(`a request starts with 0x${magic.toString(16)}`);
  return {
    flags: header.readUInt16BE(4),
    command: header.readUInt16BE(6),
    cookieHigh: header.readUInt32BE(8),
    cookieLow: header.readUInt32BE(12),
    offsetBytes: header.readUInt32BE(16) * protocol.twoTo32 + header.readUInt32BE(20),
    lengthBytes: header.readUInt32BE(24),
  };
}

/** A simple reply; the data of a read follow it. `errno` is 0 for success. */
export function encodeSimpleReply(request: ClientRequest, errno: number): Buffer {
  const reply = Buffer.allocUnsafe(16);
  reply.writeUInt32BE(protocol.simpleReplyMagic, 0);
  reply.writeUInt32BE(errno, 4);
  reply.writeUInt32BE(request.cookieHigh, 8);
  reply.writeUInt32BE(request.cookieLow, 12);
  return reply;
}

interface ChunkStart {
  readonly type: number;
  readonly done: boolean;
  /** How much of the payload is in the returned buffer, behind the header. */
  readonly ownBytes: number;
  /** How much follows it. */
  readonly furtherBytes?: number;
}

function chunkStart(request: ClientRequest, { type, done, ownBytes, furtherBytes = 0 }: ChunkStart): Buffer {
  const chunk = Buffer.allocUnsafe(protocol.chunkHeaderBytes + ownBytes);
  chunk.writeUInt32BE(protocol.structuredReplyMagic, 0);
  chunk.writeUInt16BE(done ? protocol.chunkDone : 0, 4);
  chunk.writeUInt16BE(type, 6);
  chunk.writeUInt32BE(request.cookieHigh, 8);
  chunk.writeUInt32BE(request.cookieLow, 12);
  chunk.writeUInt32BE(ownBytes + furtherBytes, 16);
  return chunk;
}

function writeOffset(chunk: Buffer, offsetBytes: number): void {
  chunk.writeUInt32BE(Math.floor(offsetBytes / protocol.twoTo32), protocol.chunkHeaderBytes);
  chunk.writeUInt32BE(offsetBytes % protocol.twoTo32, protocol.chunkHeaderBytes + 4);
}

interface Stretch {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** The last chunk of the reply. */
  readonly done: boolean;
}

/** The start of a chunk of data; as many bytes as the stretch is long follow it. */
export function encodeDataStart(request: ClientRequest, { offsetBytes, lengthBytes, done }: Stretch): Buffer {
  const type = protocol.chunks.offsetData;
  const ownBytes = protocol.chunkOffsetBytes;
  const chunk = chunkStart(request, { type, done, ownBytes, furtherBytes: lengthBytes });
  writeOffset(chunk, offsetBytes);
  return chunk;
}

/** A chunk that says that a stretch is zero. */
export function encodeHole(request: ClientRequest, { offsetBytes, lengthBytes, done }: Stretch): Buffer {
  const ownBytes = protocol.chunkOffsetBytes + 4;
  const chunk = chunkStart(request, { type: protocol.chunks.offsetHole, done, ownBytes });
  writeOffset(chunk, offsetBytes);
  chunk.writeUInt32BE(lengthBytes, protocol.chunkHeaderBytes + protocol.chunkOffsetBytes);
  return chunk;
}

/** The chunk that says nothing, and ends a reply. */
export function encodeNone(request: ClientRequest): Buffer {
  return chunkStart(request, { type: protocol.chunks.none, done: true, ownBytes: 0 });
}

/** A chunk that refuses the request and ends its reply. */
export function encodeRefusal(request: ClientRequest, errno: number, text: string): Buffer {
  const message = Buffer.from(text);
  const ownBytes = 6 + message.length;
  const chunk = chunkStart(request, { type: protocol.chunks.error, done: true, ownBytes });
  chunk.writeUInt32BE(errno, protocol.chunkHeaderBytes);
  chunk.writeUInt16BE(message.length, protocol.chunkHeaderBytes + 4);
  message.copy(chunk, protocol.chunkHeaderBytes + 6);
  return chunk;
}

/** A whole reply to a status request: pairs of length and flags. */
export function encodeStatus(
  request: ClientRequest,
  contextId: number,
  descriptors: readonly { readonly lengthBytes: number; readonly flags: number }[],
): Buffer {
  const ownBytes = 4 + descriptors.length * 8;
  const chunk = chunkStart(request, { type: protocol.chunks.blockStatus, done: true, ownBytes });
  chunk.writeUInt32BE(contextId, protocol.chunkHeaderBytes);
  let at = protocol.chunkHeaderBytes + 4;
  for (const { lengthBytes, flags } of descriptors) {
    chunk.writeUInt32BE(lengthBytes, at);
    chunk.writeUInt32BE(flags, at + 4);
    at += 8;
  }
  return chunk;
}
