import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { randomFrom } from './objectStore.ts';

/**
 * A way to a server on which connections break off: each after a number of bytes, in both directions together, that
 * comes from a seed. Whatever has passed by then has arrived.
 */
export class CuttingProxy implements AsyncDisposable {
  /** Connections that were cut. */
  cuts = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(target: URL, nextBytes: () => number) {
    this.#server = createServer((client) => this.#connect(client, target, nextBytes()));
  }

  /** @param bytesMax that any connection carries; the mean is half of it */
  static async start(
    endpoint: string,
    options: { readonly seed: number; readonly bytesMax: number },
  ): Promise<CuttingProxy> {
    const random = randomFrom(options.seed);
    const proxy = new CuttingProxy(new URL(endpoint), () => Math.floor(random() * options.bytesMax));
    proxy.#server.listen(0, '127.0.0.1');
    await once(proxy.#server, 'listening');
    return proxy;
  }

  get endpoint(): string {
    const address = this.#server.address();
    if (typeof address !== 'object' || address === null) throw new Error('the proxy does not listen');
    return `http://127.0.0.1:${address.port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await once(this.#server, 'close');
  }

  #connect(client: Socket, target: URL, bytesMax: number): void {
    const server = connect(Number(target.port), target.hostname);
    const pair = [client, server] as const;
    let leftBytes = bytesMax;
    const end = (): void => {
      for (const socket of pair) socket.destroy();
    };
    const pass = (from: Socket, to: Socket): void => {
      from.on('data', (data: Buffer) => {
        const piece = data.subarray(0, leftBytes);
        const isLast = data.length >= leftBytes;
        if (isLast && leftBytes > 0) this.cuts++;
        leftBytes -= piece.length;
        // What was let through arrives before the end does.
        to.write(piece, isLast ? end : undefined);
      });
    };
    pass(client, server);
    pass(server, client);
    for (const socket of pair) {
      this.#sockets.add(socket);
      // The other side sees an end; why, is of no interest.
      socket.on('error', end).on('close', () => {
        this.#sockets.delete(socket);
        end();
      });
    }
  }
}
