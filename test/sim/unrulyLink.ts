import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { randomFrom } from './objectStore.ts';

/** What becomes of one connection. */
interface Fate {
  /** In both directions together; then the client is cut off. */
  readonly bytesMax: number;
  /** Each piece arrives so much later. */
  readonly delayMs: number;
  /** In each direction; the pieces wait for each other. Infinity: it is as fast as it can. */
  readonly bytesPerSecond: number;
  /** What the client has sent goes on to arrive for so long after it was cut off, beside what its next connection brings. */
  readonly lingerMs: number;
  /** All that the client has sent arrives once more, on another connection, so long after it was cut off; null: it does not. */
  readonly replayMs: number | null;
}

/** How unruly a link is, at the most. */
export interface Unruliness {
  readonly seed: number;
  readonly bytesMax: number;
  readonly delayMsMax: number;
  readonly lingerMsMax: number;
  /** Of so many connections one is replayed. */
  readonly replaysOneOf: number;
  /** Every other connection is as slow as this, or up to ten times as fast. None is unless told. */
  readonly bytesPerSecondMin?: number | undefined;
}

/**
 * A way to a server on which connections are slow, break off, and go on to deliver after they have broken off, some of
 * them a second time: what is sent on several of them arrives late, doubled and in any order. All of it from a seed.
 */
export class UnrulyLink implements AsyncDisposable {
  /** What has happened, for the test to see that it did. */
  readonly counts = { connections: 0, cuts: 0, replays: 0 };
  /** Nothing passes, and nothing connects. */
  isDown = false;
  readonly #server: Server;
  readonly #port: number;
  readonly #sockets = new Set<Socket>();
  readonly #timers = new Set<NodeJS.Timeout>();

  private constructor(port: number, { seed, ...most }: Unruliness) {
    const random = randomFrom(seed);
    this.#port = port;
    this.#server = createServer((client) =>
      this.#carry(client, {
        bytesMax: Math.floor(random() * most.bytesMax),
        bytesPerSecond: speedOf(most, random),
        delayMs: Math.floor(random() * most.delayMsMax),
        lingerMs: Math.floor(random() * most.lingerMsMax),
        replayMs: random() * most.replaysOneOf < 1 ? Math.floor(random() * most.lingerMsMax) : null,
      }),
    );
  }

  /** @param port of the server, on loopback; it may come and go */
  static async start(port: number, unruliness: Unruliness): Promise<UnrulyLink> {
    const link = new UnrulyLink(port, unruliness);
    link.#server.listen(0, '127.0.0.1');
    await once(link.#server, 'listening');
    return link;
  }

  /** HOST:PORT */
  get address(): string {
    const address = this.#server.address();
    if (typeof address !== 'object' || address === null) throw new Error('the link does not listen');
    return `127.0.0.1:${address.port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const timer of this.#timers) clearTimeout(timer);
    for (const socket of this.#sockets) socket.destroy();
    await once(this.#server, 'close');
  }

  /** Cuts all connections that there are. */
  cutAll(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  #carry(client: Socket, fate: Fate): void {
    this.counts.connections += 1;
    this.#watch(client);
    if (this.isDown) {
      client.destroy();
      return;
    }
    const server = this.#watch(connect(this.#port, '127.0.0.1'));
    const sent: Buffer[] = [];
    let leftBytes = fate.bytesMax;
    const toServer = this.#pipe(fate);
    const toClient = this.#pipe(fate);
    const count = (data: Buffer): void => {
      leftBytes -= data.length;
      if (leftBytes > 0 || client.destroyed) return;
      this.counts.cuts += 1;
      client.destroy();
    };
    client.on('data', (data: Buffer) => {
      sent.push(data);
      toServer(data, () => server.write(data));
      count(data);
    });
    server.on('data', (data: Buffer) => {
      toClient(data, () => client.write(data));
      count(data);
    });
    server.on('close', () => client.destroy());
    client.on('close', () => {
      this.#later(fate.delayMs + fate.lingerMs, () => server.destroy());
      if (fate.replayMs !== null) this.#later(fate.replayMs, () => this.#replay(Buffer.concat(sent)));
    });
  }

  /** One direction of a connection: what is sent arrives in its order, at the speed of the link. */
  #pipe({ delayMs, bytesPerSecond }: Fate): (data: Buffer, arrive: () => void) => void {
    const queue: { readonly dueMs: number; readonly arrive: () => void }[] = [];
    let busyUntilMs = 0;
    const next = (): void => {
      const [first] = queue;
      if (first === undefined) return;
      this.#later(Math.max(0, first.dueMs - performance.now()), () => {
        queue.shift();
        first.arrive();
        next();
      });
    };
    return (data, arrive) => {
      busyUntilMs = Math.max(busyUntilMs, performance.now()) + (data.length / bytesPerSecond) * 1000;
      queue.push({ dueMs: busyUntilMs + delayMs, arrive });
      if (queue.length === 1) next();
    };
  }

  #replay(sent: Buffer): void {
    if (this.isDown) return;
    this.counts.replays += 1;
    const again = this.#watch(connect(this.#port, '127.0.0.1'));
    again.on('data', () => undefined).write(sent);
    this.#later(500, () => again.destroy());
  }

  #later(ms: number, what: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      what();
    }, ms);
    this.#timers.add(timer);
  }

  #watch(socket: Socket): Socket {
    this.#sockets.add(socket);
    // That it broke is told by its close.
    return socket.on('error', () => undefined).on('close', () => this.#sockets.delete(socket));
  }
}

function speedOf({ bytesPerSecondMin }: Omit<Unruliness, 'seed'>, random: () => number): number {
  if (bytesPerSecondMin === undefined || random() < 0.5) return Number.POSITIVE_INFINITY;
  return bytesPerSecondMin * 10 ** random();
}
