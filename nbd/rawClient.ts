import { once } from 'node:events';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { u16, u32, u64 } from './fakeServer.ts';

/** Flags of a request, as the specification numbers them. */
export const flagDontFragment = 4;
export const flagRequestOne = 8;

export interface RawRequest {
  readonly command: number;
  readonly flags?: number;
  readonly cookie: bigint;
  readonly offset?: number | bigint;
  readonly length?: number;
}

/** What came for one request. */
export interface RawReply {
  errno: number;
  readonly chunks: { readonly type: number; readonly offset: number; readonly length: number }[];
  /** Of a read: its bytes by their offset within the export. */
  readonly data: { readonly offset: number; readonly bytes: Buffer }[];
  /** Of a status: length and flags. */
  readonly descriptors: (readonly [number, number])[];
}

export function encodeRawRequest({ command, flags = 0, cookie, offset = 0, length = 0 }: RawRequest): Buffer {
  return Buffer.concat([u32(0x25609513), u16(flags), u16(command), u64(cookie), u64(offset), u32(length)]);
}

export const rawOption = (option: number, payload: Buffer = Buffer.alloc(0)): Buffer =>
  Buffer.concat([u64(0x49484156454f5054n), u32(option), u32(payload.length), payload]);

export const rawText = (text: string): Buffer =>
  Buffer.concat([u32(Buffer.byteLength(text)), Buffer.from(text)]);

export const rawGo = (name: string, option = 7): Buffer =>
  rawOption(option, Buffer.concat([rawText(name), u16(0)]));

export const rawContexts = (name: string, queries: readonly string[], option = 10): Buffer =>
  rawOption(option, Buffer.concat([rawText(name), u32(queries.length), ...queries.map(rawText)]));

export const rawClientFlags = u32(3);

/** Says to an NBD server whatever a test wants said, and reads what comes back without believing it. */
export class RawClient {
  readonly socket: Socket;
  readonly closed: Promise<void>;
  readonly #inbox: Buffer[] = [];
  #heldBytes = 0;
  #ended = false;
  #wake: () => void = () => {};

  private constructor(socket: Socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) => void socket.once('close', () => resolve()));
    const end = (): void => {
      this.#ended = true;
      this.#wake();
    };
    socket.on('data', (bytes: Buffer) => {
      this.#inbox.push(bytes);
      this.#heldBytes += bytes.length;
      this.#wake();
    });
    socket.on('error', () => {}); // a server that drops us is what some tests want
    socket.on('end', end);
    socket.on('close', end);
  }

  /** @param allowHalfOpen keeps the connection open on this side when the server ends it */
  static async connect(path: string, allowHalfOpen = false): Promise<RawClient> {
    const socket = connect({ path, allowHalfOpen });
    await once(socket, 'connect');
    return new RawClient(socket);
  }

  /** Connects and opens an export, with what a test needs of it. */
  static async open(
    path: string,
    name: string,
    options: { readonly structured?: boolean; readonly allocation?: boolean } = {},
  ): Promise<RawClient> {
    const client = await RawClient.connect(path);
    const { structured = true, allocation = false } = options;
    client.write(rawClientFlags);
    await client.read(18);
    if (structured) await client.ask(rawOption(8));
    if (allocation) await client.ask(rawContexts(name, ['base:allocation']));
    await client.ask(rawGo(name));
    return client;
  }

  write(...bytes: readonly Buffer[]): void {
    this.socket.write(Buffer.concat(bytes));
  }

  send(...requests: readonly RawRequest[]): void {
    this.write(...requests.map(encodeRawRequest));
  }

  /** Exactly so many bytes. Rejects when the server ends before. */
  async read(lengthBytes: number): Promise<Buffer> {
    while (this.#heldBytes < lengthBytes) {
      if (this.#ended) throw new Error(`the server ended with ${this.#heldBytes} of ${lengthBytes} bytes`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#take(lengthBytes);
  }

  /** Everything to the end of the connection. */
  async readToEnd(): Promise<Buffer> {
    while (!this.#ended)
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    return this.#take(this.#heldBytes);
  }

  #take(lengthBytes: number): Buffer {
    const whole = Buffer.concat(this.#inbox.splice(0));
    this.#heldBytes = whole.length - lengthBytes;
    if (this.#heldBytes > 0) this.#inbox.push(whole.subarray(lengthBytes));
    return whole.subarray(0, lengthBytes);
  }

  /** Sends an option; returns its replies, the last one an ACK or an error. */
  async ask(option: Buffer): Promise<readonly { readonly type: number; readonly payload: Buffer }[]> {
    this.write(option);
    const replies: { type: number; payload: Buffer }[] = [];
    for (;;) {
      const header = await this.read(20);
      if (header.readBigUInt64BE(0) !== 0x3e889045565a9n || header.readUInt32BE(8) !== option.readUInt32BE(8))
        throw new Error(`not an answer to option ${option.readUInt32BE(8)}`);
      const type = header.readUInt32BE(12);
      const payload = await this.read(header.readUInt32BE(16));
      replies.push({ type, payload });
      if (type === 1 || type >= 0x8000_0000) return replies;
    }
  }

  /** Receives structured replies until so many requests are answered. */
  async structured(count: number): Promise<ReadonlyMap<bigint, RawReply>> {
    const replies = new Map<bigint, RawReply>();
    for (let left = count; left > 0; ) {
      const header = await this.read(20);
      if (header.readUInt32BE(0) !== 0x668e33ef) throw new Error('not a structured reply');
      const cookie = header.readBigUInt64BE(8);
      const reply = replies.get(cookie) ?? { errno: 0, chunks: [], data: [], descriptors: [] };
      replies.set(cookie, reply);
      takeChunk(reply, header.readUInt16BE(6), await this.read(header.readUInt32BE(16)));
      if ((header.readUInt16BE(4) & 1) !== 0) left -= 1;
    }
    return replies;
  }

  /** Receives one simple reply. @param lengthBytes of its data, if it is a success */
  async simple(lengthBytes: number): Promise<{ errno: number; cookie: bigint; data: Buffer }> {
    const header = await this.read(16);
    if (header.readUInt32BE(0) !== 0x67446698) throw new Error('not a simple reply');
    const errno = header.readUInt32BE(4);
    const data = errno === 0 ? await this.read(lengthBytes) : Buffer.alloc(0);
    return { errno, cookie: header.readBigUInt64BE(8), data };
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

function takeChunk(reply: RawReply, type: number, payload: Buffer): void {
  const offset = type === 1 || type === 2 ? Number(payload.readBigUInt64BE(0)) : 0;
  const length = type === 2 ? payload.readUInt32BE(8) : type === 1 ? payload.length - 8 : 0;
  reply.chunks.push({ type, offset, length });
  if (type === 1) reply.data.push({ offset, bytes: payload.subarray(8) });
  else if (type === 2) reply.data.push({ offset, bytes: Buffer.alloc(length) });
  else if (type === 5)
    for (let at = 4; at < payload.length; at += 8)
      reply.descriptors.push([payload.readUInt32BE(at), payload.readUInt32BE(at + 4)]);
  else if (type >= 0x8000) reply.errno = payload.readUInt32BE(0);
  else if (type !== 0) throw new Error(`a chunk of type ${type}`);
}

/** The bytes of a read, each exactly once; `undefined` if some are missing or there twice. */
export function assemble(reply: RawReply, offset: number, lengthBytes: number): Buffer | undefined {
  const whole = Buffer.alloc(lengthBytes);
  let position = offset;
  for (const piece of reply.data.toSorted((a, b) => a.offset - b.offset)) {
    if (piece.offset !== position || piece.bytes.length === 0) return undefined;
    piece.bytes.copy(whole, position - offset);
    position += piece.bytes.length;
  }
  return position === offset + lengthBytes ? whole : undefined;
}
