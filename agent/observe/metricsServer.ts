import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { HostPort } from '../../common/hostPort.ts';
import { messageOf } from '../../common/errors.ts';
import { http } from '../../common/nodeHttp.ts';
import { ObserveError } from './errors.ts';

/** Who scrapes has one connection; more than these are closed at once. */
const connectionsMax = 16;
/** A request is one line and some headers. */
const requestMs = 5000;
const headerBytesMax = 8192;

export interface MetricsServerOptions {
  readonly address: HostPort;
  readonly contentType: string;
  /** What is answered; when it fails, that is told to `onError` and not to who has asked. */
  readonly text: () => Promise<string>;
  readonly onError: (error: unknown) => void;
}

/** Answers GET /metrics over HTTP, and nothing else. */
export class MetricsServer implements AsyncDisposable {
  readonly #server: Server;
  /** Where it listens. */
  readonly address: HostPort;

  private constructor(server: Server, { address: host, port }: AddressInfo) {
    this.#server = server;
    this.address = { host, port };
  }

  /** @throws ObserveError METRICS_UNAVAILABLE when it cannot listen there */
  static async start(options: MetricsServerOptions): Promise<MetricsServer> {
    const limits = {
      headersTimeout: requestMs,
      requestTimeout: requestMs,
      keepAliveTimeout: requestMs,
      connectionsCheckingInterval: 1000,
      maxHeaderSize: headerBytesMax,
    };
    const server = http.createServer(limits, (request, response) => {
      void answer(request, response, options);
    });
    server.maxConnections = connectionsMax;
    const { host, port } = options.address;
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen({ host, port }, resolve);
      });
    } catch (error) {
      throw new ObserveError(
        'METRICS_UNAVAILABLE',
        `metrics cannot be told at ${host}:${port}: ${messageOf(error)}`,
        {
          hint: `metrics.listen in the configuration; who has it: ss -tlnp 'sport = :${port}'`,
          cause: error,
          retryable: true,
        },
      );
    }
    server.on('error', options.onError);
    const bound = server.address();
    if (bound === null || typeof bound === 'string') throw new Error('a server that listens has an address');
    return new MetricsServer(server, bound);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    this.#server.closeAllConnections();
    await closed;
  }
}

/** Never rejects. */
async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  { text, contentType, onError }: MetricsServerOptions,
): Promise<void> {
  // Nothing that comes with a request is read; a connection that ends early concerns nobody.
  response.on('error', () => undefined);
  if (request.url !== '/metrics') return end(response, 404, 'only /metrics is here\n');
  if (request.method !== 'GET') return end(response, 405, 'only GET\n', { allow: 'GET' });
  try {
    const body = await text();
    end(response, 200, body, { 'content-type': contentType });
  } catch (error) {
    onError(error);
    end(response, 500, 'the figures could not be found; the log of the service says why\n');
  }
}

function end(
  response: ServerResponse,
  status: number,
  body: string,
  headers: Readonly<Record<string, string>> = {},
): void {
  response.writeHead(status, {
    'content-type': 'text/plain; charset=utf-8',
    'content-length': Buffer.byteLength(body),
    ...headers,
  });
  response.end(body);
}
