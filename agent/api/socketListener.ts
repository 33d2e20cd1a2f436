import { once } from 'node:events';
import { createServer, type Server as NetServer, type Socket } from 'node:net';
import { type Server as GrpcServer, ServerCredentials } from '@grpc/grpc-js';
import { createApiServer } from './apiServer.ts';
import type { CallerOf } from './callRules.ts';
import type { ApiContext } from './context.ts';
import { peerCredentialsReader, type ReadPeerCredentials } from './peerCredentials.ts';
import { admit, type SocketAccess } from './socketAccess.ts';
import { groupIdOf, listenAt } from './socketFile.ts';

const connectionsMax = 64;
/** Calls that are under way when the service has ended get so long. */
const graceMs = 2000;

export interface SocketOptions {
  readonly path: string;
  /** Members of this group may use it, too; null: nobody but root and the service's own user. */
  readonly group: string | null;
}

/**
 * Serves the API on a unix socket, until it is disposed.
 * @throws ApiError SOCKET_UNUSABLE, SERVICE_RUNNING
 */
export async function serveOnSocket(
  context: ApiContext,
  { path, group }: SocketOptions,
): Promise<AsyncDisposable> {
  const access = { ownUid: process.getuid?.() ?? 0, gid: group === null ? null : await groupIdOf(group) };
  const listener = new SocketListener(context, access, await peerCredentialsReader());
  const file = await listenAt(listener.server, path, access.gid);
  context.log.info({ socket: path, group }, 'the API is served');
  return {
    [Symbol.asyncDispose]: async () => {
      await file[Symbol.asyncDispose]();
      await listener.close();
    },
  };
}

/** Accepts connections, each with a gRPC server of its own: so a call belongs to the process that has connected. */
class SocketListener {
  readonly server: NetServer;
  readonly #context: ApiContext;
  readonly #access: SocketAccess;
  readonly #readCredentials: ReadPeerCredentials;
  readonly #connections = new Map<Socket, GrpcServer>();

  constructor(context: ApiContext, access: SocketAccess, readCredentials: ReadPeerCredentials) {
    this.#context = context;
    this.#access = access;
    this.#readCredentials = readCredentials;
    this.server = createServer((socket) => this.#accept(socket));
    this.server.maxConnections = connectionsMax;
  }

  #accept(socket: Socket): void {
    const { log } = this.#context;
    socket.on('error', (error) => log.debug({ err: error }, 'a connection was cut'));
    const server = createApiServer(this.#context, this.#callerOf(socket));
    this.#connections.set(socket, server);
    socket.on('close', () => {
      this.#connections.delete(socket);
      server.forceShutdown();
    });
    server.createConnectionInjector(ServerCredentials.createInsecure()).injectConnection(socket);
  }

  /** Who may not is told so by each call, which a client can show; a connection that is cut tells nothing. */
  #callerOf(socket: Socket): CallerOf {
    try {
      const caller = admit(this.#readCredentials(socket), this.#access);
      return () => caller;
    } catch (error) {
      this.#context.log.warn({ err: error }, 'somebody was not let in');
      return () => {
        throw error;
      };
    }
  }

  /** Accepts nobody any more, and ends what is left after a moment. */
  async close(): Promise<void> {
    const closed = once(this.server, 'close');
    this.server.close();
    for (const server of this.#connections.values()) server.tryShutdown(() => undefined);
    const timer = setTimeout(() => {
      for (const [socket, server] of this.#connections) {
        server.forceShutdown();
        socket.destroy();
      }
    }, graceMs);
    await closed;
    clearTimeout(timer);
  }
}
