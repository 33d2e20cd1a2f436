import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';

/** A request as the fake server has received it. */
export interface FakeRequest {
  readonly command: number;
  readonly cookie: bigint;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** What the fake server says; everything left out is what an honest server says. */
export interface Script {
  readonly greeting?: Buffer;
  readonly sizeBytes?: number;
  readonly flags?: number;
  /** Minimum, preferred, maximum; null for a server without a word about it. */
  readonly blocks?: readonly [number, number, number] | null;
  /** Contexts that it offers, by id. */
  readonly contexts?: Readonly<Record<string, number>>;
  /** Answers an option in place of the honest answer, which `undefined` asks for. */
  readonly answerOption?: (option: number) => Buffer | undefined;
  readonly onRequest?: (request: FakeRequest, peer: Socket) => void;
}

const integer = (bytes: number, value: number | bigint): Buffer => {
  const hex = BigInt(value).toString(16);
  return Buffer.from(hex.padStart(bytes * 2, '0'), 'hex');
};
export const u16 = (value: number): Buffer => integer(2, value);
export const u32 = (value: number): Buffer => integer(4, value);
export const u64 = (value: number | bigint): Buffer => integer(8, value);

export const honestGreeting = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), u16(3)]);

export function optionReply(option: number, type: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u64(0x3e889045565a9n), u32(option), u32(type), u32(payload.length), payload]);
}

/** A structured reply's chunk; `claimed` is the length that it says it has. */
export function chunk(
  request: { readonly cookie: bigint },
  type: number,
  payload: Buffer,
  options: { readonly more?: boolean; readonly claimed?: number } = {},
): Buffer {
  const flags = options.more === true ? 0 : 1;
  const length = u32(options.claimed ?? payload.length);
  return Buffer.concat([u32(0x668e33ef), u16(flags), u16(type), u64(request.cookie), length, payload]);
}

export const dataChunk = (request: FakeRequest, offset: number, data: Buffer, more = false): Buffer =>
  chunk(request, 1, Buffer.concat([u64(offset), data]), { more });

export const holeChunk = (request: FakeRequest, offset: number, length: number, more = false): Buffer =>
  chunk(request, 2, Buffer.concat([u64(offset), u32(length)]), { more });

export const statusChunk = (
  request: FakeRequest,
  contextId: number,
  descriptors: readonly (readonly [number, number])[],
  more = false,
): Buffer =>
  chunk(
    request,
    5,
    Buffer.concat([u32(contextId), ...descriptors.flatMap(([length, flags]) => [u32(length), u32(flags)])]),
    { more },
  );

export const errorChunk = (request: FakeRequest, errno: number, message: string): Buffer =>
  chunk(request, 0x8001, Buffer.concat([u32(errno), u16(Buffer.byteLength(message)), Buffer.from(message)]));

/** The byte that an honest fake volume has at a position. */
export const byteAt = (position: number): number => (position * 31 + (position >>> 8)) & 0xff;

export function honestBytes(offsetBytes: number, lengthBytes: number): Buffer {
  return Buffer.from(Uint8Array.from({ length: lengthBytes }, (_, index) => byteAt(offsetBytes + index)));
}

/** An NBD server on a unix socket that says what a test wants it to say. */
export class FakeServer {
  readonly socketPath: string;
  readonly #script: Script;
  readonly requests: FakeRequest[] = [];
  connections = 0;
  /** Everything that clients have not closed. */
  readonly peers = new Set<Socket>();

  private constructor(socketPath: string, script: Script) {
    this.socketPath = socketPath;
    this.#script = script;
  }

  /** Listens until the end of the test. */
  static async start(t: Test, script: Script): Promise<FakeServer> {
    const directory = await mkdtemp(join(tmpdir(), 'stillpoint-nbd-'));
    const fake = new FakeServer(join(directory, 'socket'), script);
    const server = createServer((peer) => fake.#serve(peer));
    await new Promise<void>((resolve) => server.listen(fake.socketPath, resolve));
    t.teardown(async () => {
      for (const peer of fake.peers) peer.destroy();
      server.close();
      await rm(directory, { recursive: true });
    });
    return fake;
  }

  #serve(peer: Socket): void {
    this.connections += 1;
    this.peers.add(peer);
    peer.on('close', () => this.peers.delete(peer));
    peer.on('error', () => peer.destroy()); // the client is expected to go in the middle
    const talk = this.#talk(peer);
    let wanted = talk.next().value;
    let inbox = Buffer.alloc(0);
    peer.on('data', (bytes: Buffer) => {
      inbox = Buffer.concat([inbox, bytes]);
      while (inbox.length >= wanted) {
        const piece = inbox.subarray(0, wanted);
        inbox = inbox.subarray(wanted);
        wanted = talk.next(piece).value;
      }
    });
  }

  *#talk(peer: Socket): Generator<number, never, Buffer> {
    peer.write(this.#script.greeting ?? honestGreeting);
    yield 4;
    for (let option = 0; option !== 7; ) {
      const header = yield 16;
      option = header.readUInt32BE(8);
      const payload = yield header.readUInt32BE(12);
      peer.write(this.#script.answerOption?.(option) ?? this.#honestAnswer(option, payload));
    }
    for (;;) {
      const header = yield 28;
      const request: FakeRequest = {
        command: header.readUInt16BE(6),
        cookie: header.readBigUInt64BE(8),
        offsetBytes: Number(header.readBigUInt64BE(16)),
        lengthBytes: header.readUInt32BE(24),
      };
      this.requests.push(request);
      if (request.command === 2) peer.end();
      else this.#script.onRequest?.(request, peer);
    }
  }

  #honestAnswer(option: number, payload: Buffer): Buffer {
    const { sizeBytes = 1024 * 1024, flags = 3, blocks = [1, 4096, 32 * 1024 * 1024] } = this.#script;
    const ack = optionReply(option, 1);
    if (option === 8) return ack;
    if (option === 9 || option === 10) {
      const queries = payload.toString('utf8');
      const offered = Object.entries(this.#script.contexts ?? { 'base:allocation': 7 });
      const chosen = offered.filter(([name]) => option === 9 || queries.includes(name));
      const replies = chosen.map(([name, id]) =>
        optionReply(option, 4, Buffer.concat([u32(id), Buffer.from(name)])),
      );
      return Buffer.concat([...replies, ack]);
    }
    const description = optionReply(7, 3, Buffer.concat([u16(0), u64(sizeBytes), u16(flags)]));
    const sizes = blocks === null ? [] : [optionReply(7, 3, Buffer.concat([u16(3), ...blocks.map(u32)]))];
    return Buffer.concat([description, ...sizes, ack]);
  }
}
