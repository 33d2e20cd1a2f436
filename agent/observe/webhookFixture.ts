import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { text } from 'node:stream/consumers';
import * as z from 'zod';
import { eventually } from '../../test/lab/eventually.ts';

const bodySchema = z.looseObject({ id: z.string(), status: z.string(), event: z.string() });

/** A request that a receiver has got. */
export interface Received {
  readonly headers: IncomingMessage['headers'];
  readonly text: string;
  readonly body: z.infer<typeof bodySchema>;
}

/** A receiver of alerts on the loopback. */
export class Receiver implements AsyncDisposable {
  readonly received: Received[] = [];
  /** What it answers; null: nothing at all. */
  status: number | null = 204;
  readonly headers: Record<string, string> = {};
  readonly #server: Server;
  readonly #scheme: string;

  private constructor(tls: { readonly key: string; readonly cert: string } | undefined) {
    this.#scheme = tls === undefined ? 'http' : 'https';
    this.#server = tls === undefined ? createServer() : createTlsServer(tls);
    this.#server.on('request', (request, response) => void this.#take(request, response));
  }

  async #take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const said = await text(request);
    this.received.push({ headers: request.headers, text: said, body: bodySchema.parse(JSON.parse(said)) });
    if (this.status !== null) response.writeHead(this.status, this.headers).end();
  }

  static async start(tls?: { readonly key: string; readonly cert: string }): Promise<Receiver> {
    const receiver = new Receiver(tls);
    await new Promise<void>((resolve) => {
      receiver.#server.listen({ host: '127.0.0.1', port: 0 }, resolve);
    });
    return receiver;
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === 'string') throw new Error('it does not listen');
    return `${this.#scheme}://127.0.0.1:${address.port}/hooks/t0ken-of-the-receiver`;
  }

  /** What it was told, as STATUS EVENT. */
  get told(): readonly string[] {
    return this.received.map(({ body }) => `${body.status} ${body.event}`);
  }

  async until(count: number): Promise<void> {
    await eventually(() => this.received.length >= count);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    this.#server.closeAllConnections();
    await closed;
  }
}
