import { NbdConnection } from './connection.ts';
import type { ConnectOptions } from './connection.ts';
import { NbdError, protocolError } from './errors.ts';
import type { NbdExport } from './negotiation.ts';
import { ReadRequest, StatusRequest } from './requests.ts';
import type { NbdRequest } from './requests.ts';

export type { ConnectOptions } from './connection.ts';

/** Reads are cut into pieces of at most this, so that several are at the server while one is on its way. */
const pieceBytesMax = 2 * 1024 * 1024;
/** What one status request covers: less than the 32 bits of its length, and a multiple of every block size. */
const statusBytesMax = 0x1_0000_0000 - 64 * 1024;

/** A stretch of the export with the flags of one metadata context. */
export interface NbdStatus {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** As the context defines them; see `allocation` and `dirtyFlag` in protocol.ts. */
  readonly flags: number;
}

interface Range {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/**
 * A client of one NBD export, over one connection to a unix socket. Many requests may be in flight; the server
 * answers them in any order. After NBD_TIMEOUT, NBD_PROTOCOL or NBD_CLOSED the connection is dead, and every
 * later call rejects with NBD_CLOSED; after NBD_SERVER_ERROR it goes on.
 */
export class NbdClient {
  readonly #connection: NbdConnection;
  readonly #exported: NbdExport;

  private constructor(connection: NbdConnection, exported: NbdExport) {
    this.#connection = connection;
    this.#exported = exported;
  }

  /**
   * Connects, negotiates structured replies and the metadata contexts, and opens the export.
   *
   * @throws NBD_UNREACHABLE, NBD_EXPORT_NOT_FOUND, NBD_CONTEXT_MISSING, NBD_SERVER_ERROR, NBD_PROTOCOL,
   *   NBD_TIMEOUT, NBD_CLOSED, or the reason of the signal.
   */
  static async connect(options: ConnectOptions): Promise<NbdClient> {
    const { connection, exported } = await NbdConnection.open(options);
    return new NbdClient(connection, exported);
  }

  get sizeBytes(): number {
    return this.#exported.sizeBytes;
  }

  get readOnly(): boolean {
    return this.#exported.readOnly;
  }

  /** Whether several connections may be used for one export. */
  get canMultiConn(): boolean {
    return this.#exported.canMultiConn;
  }

  /**
   * Reads bytes, all of them or none.
   *
   * @throws as `readInto`
   */
  async read(offsetBytes: number, lengthBytes: number, signal?: AbortSignal): Promise<Buffer> {
    this.#check({ offsetBytes, lengthBytes });
    const result = Buffer.allocUnsafe(lengthBytes); // given out only when every byte of it has come
    await this.readInto(result, offsetBytes, signal);
    return result;
  }

  /**
   * Fills a buffer with the bytes at a position. Split to what the server takes at once, and widened to its
   * smallest block. After a rejection a late reply may still write into the buffer.
   *
   * @throws NBD_RANGE_INVALID, NBD_SERVER_ERROR, NBD_TIMEOUT, NBD_PROTOCOL, NBD_CLOSED, or the signal's reason.
   */
  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const range = { offsetBytes, lengthBytes: target.length };
    this.#check(range);
    if (target.length === 0) return;
    const wide = this.#widen(range);
    const isWhole = wide.lengthBytes === target.length;
    const result = isWhole ? target : Buffer.allocUnsafe(wide.lengthBytes);
    const pieces: ReadRequest[] = [];
    const pieceBytes = Math.min(this.#exported.maximumReadBytes, pieceBytesMax);
    for (let start = 0; start < result.length; start += pieceBytes)
      pieces.push(new ReadRequest(wide.offsetBytes + start, result.subarray(start, start + pieceBytes)));
    await this.#run(pieces, signal);
    if (!isWhole) result.copy(target, 0, offsetBytes - wide.offsetBytes);
  }

  /**
   * The status of a range in one of the contexts that were asked for when connecting: in order, without gaps,
   * from its start to its end, neighbours with the same flags joined.
   *
   * @throws as `read`, and NBD_CONTEXT_MISSING.
   */
  async blockStatus(
    context: string,
    offsetBytes: number,
    lengthBytes: number,
    signal?: AbortSignal,
  ): Promise<readonly NbdStatus[]> {
    signal?.throwIfAborted();
    const range = { offsetBytes, lengthBytes };
    this.#check(range);
    const { contexts, minimumBlockBytes } = this.#exported;
    const id = contexts.get(context);
    if (id === undefined)
      throw new NbdError('NBD_CONTEXT_MISSING', `the connection was made without the context ${context}`);
    const list: StatusBuilder = new StatusBuilder(range);
    const wide = this.#widen(range);
    const end = lengthBytes === 0 ? wide.offsetBytes : wide.offsetBytes + wide.lengthBytes;
    let position = wide.offsetBytes;
    while (position < end) {
      if (position % minimumBlockBytes !== 0) throw protocolError('a status that ends within a block');
      const part = { offsetBytes: position, lengthBytes: Math.min(end - position, statusBytesMax) };
      const request = new StatusRequest(part, { id, all: contexts.values() });
      const [descriptors] = await this.#run([request], signal);
      for (const descriptor of descriptors ?? []) {
        list.append(position, descriptor.lengthBytes, descriptor.flags);
        position += descriptor.lengthBytes;
      }
    }
    return list.runs;
  }

  /** Ends the connection; what is still in flight rejects with NBD_CLOSED. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#connection.close();
  }

  #check({ offsetBytes, lengthBytes }: Range): void {
    const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;
    if (isCount(offsetBytes) && isCount(lengthBytes) && offsetBytes + lengthBytes <= this.sizeBytes) return;
    throw new NbdError(
      'NBD_RANGE_INVALID',
      `${lengthBytes} bytes at ${offsetBytes} are not within a volume of ${this.sizeBytes} bytes`,
    );
  }

  /**
   * The range in whole blocks. Where the size of the export is not a multiple of its block, the last block
   * ends with it; a server that insists on its blocks refuses that, and nothing is ever left out.
   */
  #widen({ offsetBytes, lengthBytes }: Range): Range {
    const block = this.#exported.minimumBlockBytes;
    const start = offsetBytes - (offsetBytes % block);
    const end = Math.min(this.sizeBytes, Math.ceil((offsetBytes + lengthBytes) / block) * block);
    return { offsetBytes: start, lengthBytes: end - start };
  }

  /** Sends requests and waits for all of them, or for the first that fails, or for the signal. */
  async #run<T>(requests: readonly NbdRequest<T>[], signal: AbortSignal | undefined): Promise<readonly T[]> {
    const aborted = Promise.withResolvers<never>();
    const abort = (): void => aborted.reject(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      const answers = Promise.all(requests.map((request) => request.done));
      for (const request of requests) this.#connection.submit(request);
      return await Promise.race([answers, aborted.promise]);
    } catch (error) {
      for (const request of requests) this.#connection.withdraw(request);
      throw error;
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }
}

/** Joins descriptors, and cuts them to a range. */
class StatusBuilder {
  readonly runs: { offsetBytes: number; lengthBytes: number; flags: number }[] = [];
  readonly #start: number;
  readonly #end: number;

  constructor({ offsetBytes, lengthBytes }: Range) {
    this.#start = offsetBytes;
    this.#end = offsetBytes + lengthBytes;
  }

  append(offsetBytes: number, lengthBytes: number, flags: number): void {
    const start = Math.max(offsetBytes, this.#start);
    const end = Math.min(offsetBytes + lengthBytes, this.#end);
    if (start >= end) return;
    const last = this.runs.at(-1);
    if (last?.flags === flags) last.lengthBytes += end - start;
    else this.runs.push({ offsetBytes: start, lengthBytes: end - start, flags });
  }
}
