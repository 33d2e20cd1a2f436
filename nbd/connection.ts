import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { messageOf } from '../common/errors.ts';
import { zeroFill } from '../common/zeroFill.ts';
import { NbdError, protocolError } from './errors.ts';
import { negotiate } from './negotiation.ts';
import type { Filling, NbdExport } from './negotiation.ts';
import * as protocol from './protocol.ts';
import { Queue } from './queue.ts';
import type { OpenRequest } from './requests.ts';

/** Requests that the server has at once; QEMU works on this many per connection and leaves others unread. */
const inFlightMax = 16;
/** What one read from the socket can bring; reused, so that every byte is copied once, to where it belongs. */
const inboxBytes = 256 * 1024;
/** How long a farewell may take. */
const farewellMs = 1_000;

export interface ConnectOptions {
  /** The unix socket that the server listens at. */
  readonly socketPath: string;
  readonly exportName: string;
  /** Metadata contexts, such as `base:allocation`; all of them must be there. */
  readonly metaContexts?: readonly string[] | undefined;
  /** How long the server may take to open the export, and then for each request. */
  readonly answerMs: number;
  readonly signal?: AbortSignal | undefined;
}

interface InFlight {
  readonly request: OpenRequest;
  readonly dueAt: number;
}

/**
 * One connection to an export, after its negotiation: takes requests, keeps up to 16 of them at the server, and
 * hands them the chunks of their replies. It dies of a broken protocol, of a missed deadline or of its end;
 * then every request that it has rejects.
 */
export class NbdConnection {
  readonly #options: ConnectOptions;
  readonly #socket: Socket;
  readonly #opened: PromiseWithResolvers<NbdExport> = Promise.withResolvers<NbdExport>();
  readonly #closed: PromiseWithResolvers<void> = Promise.withResolvers<void>();
  readonly #script: Filling<never>;
  /** The buffer that the script waits for. */
  #target: Buffer = Buffer.alloc(0);
  #filledBytes = 0;
  /** By cookie, in the order in which they were sent: the first is due first. */
  readonly #inFlight = new Map<number, InFlight>();
  #lastCookie = 0;
  /** Requests that have not been sent. */
  readonly #waiting = new Queue<OpenRequest>();
  readonly #withdrawn = new WeakSet<OpenRequest>();
  #timer: NodeJS.Timeout | undefined;
  #connected = false;
  #end: NbdError | undefined;

  /**
   * Connects and negotiates.
   *
   * @throws NBD_UNREACHABLE, NBD_TIMEOUT, NBD_CLOSED, what `negotiate` throws, or the reason of the signal.
   */
  static async open(
    options: ConnectOptions,
  ): Promise<{ readonly connection: NbdConnection; readonly exported: NbdExport }> {
    const { signal, answerMs } = options;
    signal?.throwIfAborted();
    const connection = new NbdConnection(options);
    const give = (): void => connection.#die(new NbdError('NBD_CLOSED', 'given up'), signal?.reason);
    const timer = setTimeout(() => connection.#die(connection.#late('to open the export')), answerMs);
    signal?.addEventListener('abort', give, { once: true });
    try {
      return { connection, exported: await connection.#opened.promise };
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', give);
    }
  }

  private constructor(options: ConnectOptions) {
    this.#options = options;
    this.#opened.promise.catch(() => {}); // whoever opens it hears of it; nobody else has to
    this.#script = this.#converse();
    const onread = {
      buffer: Buffer.allocUnsafe(inboxBytes),
      callback: (byteCount: number, inbox: Uint8Array): boolean => {
        this.#receive(inbox.subarray(0, byteCount));
        return true;
      },
    };
    this.#socket = connect({ path: options.socketPath, onread });
    this.#socket.on('connect', () => {
      this.#connected = true;
    });
    this.#socket.on('error', (error) => this.#die(this.#lost(error)));
    this.#socket.on('end', () => this.#die(this.#gone()));
    this.#socket.on('close', () => {
      this.#die(this.#gone());
      this.#closed.resolve();
    });
    this.#advance();
  }

  /** Puts a request into the queue; its `done` settles in any case. */
  submit(request: OpenRequest): void {
    if (this.#end !== undefined) {
      const { message, hint, retryable } = this.#end;
      request.fail(new NbdError('NBD_CLOSED', `after: ${message}`, { hint, retryable, cause: this.#end }));
      return;
    }
    this.#waiting.push(request);
    this.#send();
  }

  /**
   * The caller has lost interest. What the server does not have yet is not sent; the reply to what it has is
   * received, as the protocol has no way to call a request back.
   */
  withdraw(request: OpenRequest): void {
    this.#withdrawn.add(request);
  }

  /** Tells the server goodbye; requests that still wait reject with NBD_CLOSED. Never rejects. */
  async close(): Promise<void> {
    if (this.#end === undefined) {
      const farewell = protocol.encodeRequest({
        command: protocol.commands.disconnect,
        cookie: 0,
        offsetBytes: 0,
        lengthBytes: 0,
      });
      this.#reject(this.#named(new NbdError('NBD_CLOSED', 'we have closed the connection')));
      this.#socket.end(farewell);
    }
    const timer = setTimeout(() => this.#socket.destroy(), farewellMs);
    await this.#closed.promise;
    clearTimeout(timer);
  }

  #send(): void {
    while (this.#inFlight.size < inFlightMax) {
      const request = this.#waiting.shift();
      if (request === undefined) break;
      if (this.#withdrawn.has(request)) continue;
      const { command, offsetBytes, lengthBytes } = request;
      const cookie = (this.#lastCookie += 1);
      this.#inFlight.set(cookie, { request, dueAt: performance.now() + this.#options.answerMs });
      this.#socket.write(protocol.encodeRequest({ command, cookie, offsetBytes, lengthBytes }));
    }
    this.#watch();
  }

  /** Keeps one timer, for the request that is due first. */
  #watch(): void {
    const first = this.#firstInFlight();
    if (this.#timer !== undefined || first === undefined) return;
    this.#timer = setTimeout(
      () => {
        // Where this process was held up itself, the answer may be waiting in the socket: look there first.
        setImmediate(() => this.#checkDue());
      },
      Math.max(1, first.dueAt - performance.now()),
    );
  }

  #checkDue(): void {
    this.#timer = undefined;
    const first = this.#firstInFlight();
    if (first !== undefined && first.dueAt <= performance.now())
      this.#die(this.#late(`to ${first.request.what}`));
    else this.#watch();
  }

  #firstInFlight(): InFlight | undefined {
    return this.#inFlight.values().next().value;
  }

  /** Copies what has come to where the script wants it, and lets it go on. */
  #receive(bytes: Uint8Array): void {
    try {
      let taken = 0;
      while (taken < bytes.length && this.#end === undefined) {
        const count = Math.min(bytes.length - taken, this.#target.length - this.#filledBytes);
        this.#target.set(bytes.subarray(taken, taken + count), this.#filledBytes);
        taken += count;
        this.#filledBytes += count;
        if (this.#filledBytes === this.#target.length) this.#advance();
      }
    } catch (error) {
      this.#die(
        error instanceof NbdError ? this.#named(error) : this.#named(protocolError(messageOf(error))),
      );
    }
  }

  #advance(): void {
    do this.#target = this.#script.next().value;
    while (this.#target.length === 0);
    this.#filledBytes = 0;
  }

  /** Everything that the server says, from its greeting to the end. */
  *#converse(): Filling<never> {
    const { exportName, metaContexts = [] } = this.#options;
    const send = (bytes: Buffer): void => void this.#socket.write(bytes);
    this.#opened.resolve(yield* negotiate({ exportName, metaContexts, send }));
    const header = Buffer.alloc(protocol.chunkHeaderBytes);
    for (;;) {
      yield header;
      const chunk = protocol.decodeChunkHeader(header);
      const request = this.#inFlight.get(chunk.cookie)?.request;
      if (request === undefined) throw protocolError(`a reply to request ${chunk.cookie}, which is not open`);
      yield* receivePayload(chunk, request);
      if (!chunk.done) continue;
      request.finish();
      this.#inFlight.delete(chunk.cookie);
      this.#send();
    }
  }

  /** The connection is over; the first reason counts. `reason` is what the opener hears instead. */
  #die(error: NbdError, reason?: unknown): void {
    if (this.#end !== undefined) return;
    this.#reject(error, reason);
    this.#socket.destroy();
  }

  #reject(error: NbdError, reason: unknown = error): void {
    this.#end = error;
    clearTimeout(this.#timer);
    this.#opened.reject(reason);
    for (const { request } of this.#inFlight.values()) request.fail(error);
    this.#inFlight.clear();
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) next.fail(error);
  }

  /** The same error, saying which server and export it is about. */
  #named(error: NbdError): NbdError {
    const { code, retryable, errno } = error;
    const { exportName, socketPath } = this.#options;
    const hint = error.hint ?? `qemu-nbd --list -k ${socketPath}`;
    const message = `NBD export "${exportName}" at ${socketPath}: ${error.message}`;
    return new NbdError(code, message, { hint, retryable, errno, cause: error.cause });
  }

  #late(what: string): NbdError {
    const message = `no answer within ${this.#options.answerMs} ms to the request ${what}`;
    const hint = `ss -xp | grep ${this.#options.socketPath}; journalctl -k`;
    return this.#named(new NbdError('NBD_TIMEOUT', message, { retryable: true, hint }));
  }

  #lost(cause: Error): NbdError {
    const hint = `ls -l ${this.#options.socketPath}; is its server running?`;
    const code = this.#connected ? 'NBD_CLOSED' : 'NBD_UNREACHABLE';
    return this.#named(new NbdError(code, cause.message, { cause, hint, retryable: true }));
  }

  #gone(): NbdError {
    return this.#named(new NbdError('NBD_CLOSED', 'the server closed the connection', { retryable: true }));
  }
}

/** Receives what follows a chunk's header: data go straight to where they are wanted. */
function* receivePayload(chunk: protocol.ChunkHeader, request: OpenRequest): Filling<void> {
  if (chunk.type === protocol.chunks.offsetData) {
    const offset = Buffer.alloc(protocol.chunkOffsetBytes);
    yield offset;
    yield request.place(protocol.decodeOffset(offset), chunk.payloadBytes - protocol.chunkOffsetBytes);
    return;
  }
  const payload = Buffer.alloc(chunk.payloadBytes);
  yield payload;
  if (chunk.isError) {
    const { errno, message } = protocol.decodeError(payload, chunk.type);
    request.refuse(errno, message);
  } else if (chunk.type === protocol.chunks.offsetHole) {
    zeroFill(request.place(protocol.decodeOffset(payload), protocol.decodeHoleLength(payload)));
  } else if (chunk.type === protocol.chunks.blockStatus) request.describe(payload);
}
