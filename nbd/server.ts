import { createServer } from 'node:net';
import type { Server, Socket } from 'node:net';
import type { VolumeSource } from '../common/volumeSource.ts';
import { CachedVolume } from './cachedVolume.ts';
import { NbdError } from './errors.ts';
import { stringBytesMax } from './protocol.ts';
import { ReadCache } from './readCache.ts';
import { ServerConnection } from './serverConnection.ts';
import { defaultLimits, requireLimits } from './serverLimits.ts';
import type { ServerLimits } from './serverLimits.ts';
import { listenPrivately, removeSocket } from './serverSocket.ts';
import type { PlacedSocket, SocketOwner } from './serverSocket.ts';

export type { ServerLimits } from './serverLimits.ts';
export type { SocketOwner } from './serverSocket.ts';

export interface NbdServerOptions {
  /** The unix socket to listen at, mode 0600; 107 bytes at most. */
  readonly socketPath: string;
  /** Who may connect beside root; this process's user unless told. */
  readonly owner?: SocketOwner | undefined;
  /** What is served, by name. The sources belong to the caller, and outlive the server. */
  readonly exports: ReadonlyMap<string, VolumeSource>;
  /** What was read; one can serve several servers. */
  readonly cache?: ReadCache | undefined;
  readonly limits?: Partial<ServerLimits> | undefined;
  /**
   * Hears of every read of a source that has failed (NBD_SOURCE_FAILED, once, whoever waited for it) and of every
   * client that was dropped (NBD_PROTOCOL, NBD_TIMEOUT). The server goes on.
   */
  readonly onError: (error: NbdError) => void;
}

/**
 * A read-only NBD server on a unix socket, for QEMU, `qemu-img`, `nbdfuse` and ourselves: fixed newstyle negotiation,
 * structured replies, `base:allocation`, several connections per export. Reads go through a cache in blocks, and
 * ahead of clients that read in order. Many requests may be open, of which none waits for another; a source that fails
 * fails the requests for what could not be read, and is asked anew by the next one.
 */
export class NbdServer {
  readonly socketPath: string;
  readonly #server: Server;
  readonly #options: NbdServerOptions;
  readonly #limits: ServerLimits;
  readonly #volumes: ReadonlyMap<string, CachedVolume>;
  readonly #connections = new Set<ServerConnection>();
  readonly #reported = new WeakSet<Error>();
  #placed: PlacedSocket | undefined;
  #closing: Promise<void> | undefined;

  /**
   * Starts to serve.
   *
   * @throws NBD_SOCKET_UNUSABLE; RangeError for limits or names that are none
   */
  static async listen(options: NbdServerOptions): Promise<NbdServer> {
    const server = new NbdServer(options);
    try {
      server.#placed = await listenPrivately(server.#server, options.socketPath, options.owner);
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
    return server;
  }

  private constructor(options: NbdServerOptions) {
    this.socketPath = options.socketPath;
    this.#options = options;
    this.#limits = { ...defaultLimits, ...options.limits };
    requireLimits(this.#limits);
    const { cache = new ReadCache(), exports } = options;
    for (const name of exports.keys())
      if (Buffer.byteLength(name) > stringBytesMax) throw new RangeError(`an export's name is too long`);
    this.#volumes = new Map(
      Array.from(exports, ([name, source]) => [name, new CachedVolume(name, source, cache)] as const),
    );
    this.#server = createServer((socket) => this.#serve(socket));
    this.#server.maxConnections = this.#limits.connections;
    this.#server.on('error', (error) => {
      // As long as it does not listen, `listen` rejects with it.
      if (this.#placed !== undefined)
        this.#report(new NbdError('NBD_CLOSED', error.message, { cause: error }));
    });
  }

  /** Clients that are connected. */
  get connections(): number {
    return this.#connections.size;
  }

  /**
   * Ends every connection, what sources are reading for them, and the socket. Requests that are open stay unanswered:
   * a client that reconnects asks again, where an error would reach its guest. Never rejects for a client's sake.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close();
    await this.#closing;
  }

  async #close(): Promise<void> {
    // The path goes first: who comes now finds nobody, instead of somebody who leaves.
    if (this.#placed !== undefined) await removeSocket(this.#placed);
    const ended = this.#server.listening
      ? new Promise<void>((resolve) => void this.#server.close(() => resolve()))
      : Promise.resolve();
    for (const connection of this.#connections) connection.end();
    for (const volume of this.#volumes.values()) volume.close();
    await Promise.all(Array.from(this.#connections, ({ closed }) => closed));
    await ended;
  }

  #serve(socket: Socket): void {
    const connection = new ServerConnection(socket, {
      volumes: this.#volumes,
      limits: this.#limits,
      onClientError: (error) => this.#report(error),
      onSourceError: (error) => this.#report(error),
    });
    this.#connections.add(connection);
    void connection.closed.then(() => this.#connections.delete(connection));
    if (this.#closing !== undefined) connection.end();
  }

  /** Several requests can wait for one read, and bring the same error. */
  #report(error: unknown): void {
    const known =
      error instanceof NbdError ? error : new NbdError('NBD_SOURCE_FAILED', String(error), { cause: error });
    if (this.#reported.has(known)) return;
    this.#reported.add(known);
    this.#options.onError(known);
  }
}
