import { protocolError, serverError } from './errors.ts';
import type { NbdError } from './errors.ts';
import { commands } from './protocol.ts';

/**
 * Pieces that one reply may come in besides those that follow each other. A server that cuts finer than this
 * is not doing anybody's work, and each piece is remembered until the reply is complete.
 */
const scatteredPiecesMax = 65_536;

/** A request in a connection, and what the chunks of its reply do to it. Settled once, through `done`. */
export abstract class NbdRequest<T> {
  abstract readonly command: number;
  /** What a message says that the server was to do. */
  abstract readonly what: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly done: Promise<T>;
  readonly #settle: PromiseWithResolvers<T> = Promise.withResolvers<T>();
  #refusal: NbdError | undefined;

  constructor(offsetBytes: number, lengthBytes: number) {
    this.offsetBytes = offsetBytes;
    this.lengthBytes = lengthBytes;
    this.done = this.#settle.promise;
  }

  /** Where the bytes of a data chunk go; the caller fills the buffer. */
  place(_offsetBytes: number, _lengthBytes: number): Buffer {
    throw protocolError(`data for a request to ${this.what}`);
  }

  /** Takes a chunk of descriptors: context id, then pairs of length and flags. */
  describe(_payload: Buffer): void {
    throw protocolError(`a status for a request to ${this.what}`);
  }

  /** The server refuses the request; the first reason counts. */
  refuse(errno: number, message: string): void {
    this.#refusal ??= serverError(this.what, errno, message);
  }

  /**
   * The reply has ended.
   *
   * @throws NBD_PROTOCOL if it was neither complete nor refused.
   */
  finish(): void {
    if (this.#refusal === undefined) this.#settle.resolve(this.complete());
    else this.#settle.reject(this.#refusal);
  }

  /** The connection has ended first. */
  fail(error: unknown): void {
    this.#settle.reject(error);
  }

  /** Checks that nothing is missing. */
  protected abstract complete(): T;
}

/** What a connection knows of a request. */
export type OpenRequest = Pick<
  NbdRequest<unknown>,
  'command' | 'what' | 'offsetBytes' | 'lengthBytes' | 'place' | 'describe' | 'refuse' | 'finish' | 'fail'
>;

/** Reads bytes into a buffer of the caller. Chunks may come in any order, but each byte exactly once. */
export class ReadRequest extends NbdRequest<void> {
  readonly command = commands.read;
  readonly #target: Buffer;
  /** Stretches that have come, each as start and end within the target. */
  readonly #pieces: { start: number; end: number }[] = [];
  #placedBytes = 0;

  /** `target` has the length that is to be read. */
  constructor(offsetBytes: number, target: Buffer) {
    super(offsetBytes, target.length);
    this.#target = target;
  }

  get what(): string {
    return `read ${this.lengthBytes} bytes at ${this.offsetBytes}`;
  }

  override place(offsetBytes: number, lengthBytes: number): Buffer {
    const start = offsetBytes - this.offsetBytes;
    const end = start + lengthBytes;
    if (start < 0 || end > this.lengthBytes)
      throw protocolError(`${lengthBytes} bytes at ${offsetBytes} for a request to ${this.what}`);
    this.#placedBytes += lengthBytes;
    if (this.#placedBytes > this.lengthBytes)
      throw protocolError(`bytes came twice for a request to ${this.what}`);
    const last = this.#pieces.at(-1);
    if (last?.end === start) last.end = end;
    else if (this.#pieces.push({ start, end }) > scatteredPiecesMax)
      throw protocolError(`a reply in more than ${scatteredPiecesMax} scattered pieces`);
    return this.#target.subarray(start, end);
  }

  /** As many bytes as were asked for, and none of them twice: then all of them are there. */
  protected override complete(): void {
    if (this.#placedBytes < this.lengthBytes)
      throw protocolError(
        `${this.lengthBytes - this.#placedBytes} bytes are missing from a request to ${this.what}`,
      );
    const pieces = this.#pieces.toSorted((a, b) => a.start - b.start);
    let position = 0;
    for (const { start, end } of pieces) {
      if (start !== position) throw protocolError(`bytes came twice for a request to ${this.what}`);
      position = end;
    }
  }
}

/** A stretch of one kind, as one descriptor has it. */
export interface StatusDescriptor {
  readonly lengthBytes: number;
  readonly flags: number;
}

/**
 * Asks for the status of a range. The server answers for every context of the connection, and for as much of
 * the range as it likes, but for something.
 */
export class StatusRequest extends NbdRequest<readonly StatusDescriptor[]> {
  readonly command = commands.blockStatus;
  readonly #contextId: number;
  readonly #awaited: Set<number>;
  #descriptors: readonly StatusDescriptor[] = [];

  constructor(
    range: { readonly offsetBytes: number; readonly lengthBytes: number },
    context: { readonly id: number; readonly all: Iterable<number> },
  ) {
    super(range.offsetBytes, range.lengthBytes);
    this.#contextId = context.id;
    this.#awaited = new Set(context.all);
  }

  get what(): string {
    return `tell the status of ${this.lengthBytes} bytes at ${this.offsetBytes}`;
  }

  override describe(payload: Buffer): void {
    const contextId = payload.readUInt32BE(0);
    if (!this.#awaited.delete(contextId))
      throw protocolError(`a status of context ${contextId}, which is unknown or has been there`);
    const descriptors = this.#decode(payload);
    if (contextId === this.#contextId) this.#descriptors = descriptors;
  }

  /** Only the last descriptor may reach beyond the range; it is cut there. */
  #decode(payload: Buffer): readonly StatusDescriptor[] {
    const descriptors: StatusDescriptor[] = [];
    let leftBytes = this.lengthBytes;
    for (let at = 4; at < payload.length; at += 8) {
      const lengthBytes = payload.readUInt32BE(at);
      if (lengthBytes === 0) throw protocolError('a status descriptor of no length');
      if (leftBytes === 0) throw protocolError(`descriptors beyond a request to ${this.what}`);
      descriptors.push({
        lengthBytes: Math.min(lengthBytes, leftBytes),
        flags: payload.readUInt32BE(at + 4),
      });
      leftBytes = Math.max(0, leftBytes - lengthBytes);
    }
    return descriptors;
  }

  protected override complete(): readonly StatusDescriptor[] {
    if (this.#awaited.has(this.#contextId)) throw protocolError('a reply without the status of the context');
    return this.#descriptors;
  }
}
