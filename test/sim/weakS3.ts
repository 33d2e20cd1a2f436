import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { buffer } from 'node:stream/consumers';
import { randomFrom } from './objectStore.ts';
import { type S3Answer, type S3Request, s3Error, WeakS3Bucket } from './weakS3Bucket.ts';

/*
 * An S3 server of our own for tests: it does not look at signatures, and it fails. The fault model, each fault at a
 * rate that comes with a seed, or at the very request that a test names:
 *
 * - `cutBefore`: the connection ends before the act. `cutAfter`: after it, so that only the answer is lost.
 * - `unavailable`: 503 SlowDown before the act. `failedAfter`: 500 InternalError after it.
 * - `conflict`: 409 before the act.
 * - `cutBody`: the connection ends in the middle of the content. `shortBody`: the content is whole by its length, and
 *   shorter than the part that it says it is.
 * - `brokenXml`: an answer of XML ends in the middle. `staleListing`: a listing lacks what is new.
 * - `silence`: no answer, until the client has enough.
 * What it does with conditions is a matter of its bucket. Acts are atomic.
 */
export const faultKinds = [
  'cutBefore',
  'cutAfter',
  'unavailable',
  'failedAfter',
  'conflict',
  'cutBody',
  'shortBody',
  'brokenXml',
  'staleListing',
  'silence',
] as const;
export type S3Fault = (typeof faultKinds)[number];

export interface WeakS3Options {
  readonly conditions?: WeakS3Bucket['conditions'];
  /** Whether it locks objects; it ignores what it is told about that unless told. */
  readonly isLocking?: boolean;
  /** How often, from 0 to 1. */
  readonly rates?: Partial<Record<S3Fault, number>>;
  readonly seed?: number;
  /** With TLS. */
  readonly tls?: { readonly key: string; readonly cert: string };
}

/** What a test does with the next request that it wants. */
export interface Intervention {
  readonly when: (request: S3Request) => boolean;
  /** A fault, or an answer of the test's own. */
  readonly fault: S3Fault | S3Answer;
  /** Does something before that. */
  readonly first?: () => void;
  /** For so many requests; one unless told. */
  readonly times?: number;
}

export class WeakS3 implements AsyncDisposable {
  readonly bucketName = 'vault';
  readonly bucket: WeakS3Bucket;
  /** All that came in, in this order. */
  readonly requests: (S3Request & { readonly url: string; readonly from: string | undefined })[] = [];
  /** May change while it runs. */
  rates: Partial<Record<S3Fault, number>>;
  readonly #server: Server;
  readonly #isTls: boolean;
  readonly #random: () => number;
  #interventions: Intervention[] = [];

  private constructor(options: WeakS3Options) {
    this.bucket = new WeakS3Bucket(options.conditions ?? 'honoured', options.isLocking ?? false);
    this.rates = options.rates ?? {};
    this.#random = randomFrom(options.seed ?? 1);
    this.#isTls = options.tls !== undefined;
    this.#server = options.tls === undefined ? createServer() : createTlsServer(options.tls);
    this.#server.on('request', (request: IncomingMessage, response: ServerResponse) => {
      void this.#answer(request, response);
    });
  }

  static async start(options: WeakS3Options = {}): Promise<WeakS3> {
    const server = new WeakS3(options);
    server.#server.listen(0, '127.0.0.1');
    await once(server.#server, 'listening');
    return server;
  }

  get port(): number {
    const address = this.#server.address();
    if (typeof address !== 'object' || address === null) throw new Error('the server does not listen');
    return address.port;
  }

  get endpoint(): string {
    return `${this.#isTls ? 'https' : 'http'}://127.0.0.1:${this.port}`;
  }

  intervene(intervention: Intervention): void {
    this.#interventions.push(intervention);
  }

  /** Takes all interventions back. */
  forget(): void {
    this.#interventions = [];
  }

  async stop(): Promise<void> {
    this.#server.close();
    this.#server.closeAllConnections();
    await once(this.#server, 'close');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #answer(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    let body: Buffer;
    try {
      body = await buffer(incoming);
    } catch {
      // The client went away in the middle of its request.
      return;
    }
    const request = this.#parse(incoming, body);
    if (request === null) return send(response, s3Error(404, 'NoSuchBucket'));
    this.requests.push({ ...request, url: incoming.url ?? '', from: incoming.socket.remoteAddress });
    const fault = this.#faultOf(request);
    if (typeof fault === 'object') return send(response, fault);
    this.#act(request, fault, response);
  }

  #act(request: S3Request, fault: S3Fault | undefined, response: ServerResponse): void {
    if (fault === 'silence') return;
    if (fault === 'cutBefore') return void response.destroy();
    if (fault === 'unavailable') return send(response, s3Error(503, 'SlowDown', 'reduce your request rate'));
    if (fault === 'conflict') return send(response, s3Error(409, 'ConditionalRequestConflict'));
    const answer = this.bucket.act(request, fault === 'staleListing');
    if (fault === 'cutAfter') return void response.destroy();
    if (fault === 'failedAfter') return send(response, s3Error(500, 'InternalError'));
    if (fault === 'cutBody') return sendPart(response, answer);
    if (fault === 'shortBody' || fault === 'brokenXml') return send(response, halved(answer, fault));
    send(response, answer);
  }

  #faultOf(request: S3Request): S3Fault | S3Answer | undefined {
    const intervention = this.#interventions.find(({ when }) => when(request));
    if (intervention !== undefined) {
      const times = (intervention.times ?? 1) - 1;
      const rest = this.#interventions.filter((other) => other !== intervention);
      this.#interventions = times > 0 ? [...rest, { ...intervention, times }] : rest;
      intervention.first?.();
      return intervention.fault;
    }
    return faultKinds.find((kind) => this.#random() < (this.rates[kind] ?? 0));
  }

  /** The bucket stands before the host or in the path; `null` for another one. */
  #parse(incoming: IncomingMessage, body: Buffer): S3Request | null {
    const url = new URL(incoming.url ?? '/', 'http://any');
    const isVirtualHost = incoming.headers.host?.startsWith(`${this.bucketName}.`) === true;
    const path = isVirtualHost ? `/${this.bucketName}${url.pathname}` : url.pathname;
    if (path !== `/${this.bucketName}` && !path.startsWith(`/${this.bucketName}/`)) return null;
    const headers = Object.entries(incoming.headers).map(
      ([name, value]) => [name, value?.toString()] as const,
    );
    return {
      method: incoming.method ?? '',
      key: decodeURIComponent(path.slice(this.bucketName.length + 2)),
      query: url.searchParams,
      headers: Object.fromEntries(headers),
      body,
    };
  }
}

function send(response: ServerResponse, { status, headers, body = '' }: S3Answer): void {
  response.writeHead(status, { 'content-length': Buffer.byteLength(body), ...headers });
  response.end(body);
}

/** Announces all of it, sends half, and goes away. */
function sendPart(response: ServerResponse, { status, headers, body = '' }: S3Answer): void {
  const bytes = Buffer.from(body);
  response.writeHead(status, { ...headers, 'content-length': bytes.length });
  response.write(bytes.subarray(0, bytes.length >> 1), () => response.destroy());
}

function halved(answer: S3Answer, fault: 'shortBody' | 'brokenXml'): S3Answer {
  const isXml = answer.headers?.['content-type'] === 'application/xml';
  if (isXml !== (fault === 'brokenXml') || answer.body === undefined) return answer;
  const bytes = Buffer.from(answer.body);
  return { ...answer, body: bytes.subarray(0, bytes.length >> 1) };
}
