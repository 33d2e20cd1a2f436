import { createHash, createHmac } from 'node:crypto';
import { constants } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { messageOf } from '../../common/errors.ts';
import { http, https } from '../../common/nodeHttp.ts';
import { JoinedSignal } from '../../common/joinedSignal.ts';
import type { AlertEvent, WebhookConfig } from '../../config/observability.ts';
import { version } from '../../common/version.ts';
import { ObserveError } from './errors.ts';

/** So long a webhook may take for all of an answer. */
const deadlineMs = 10_000;
const secretBytesMax = 4096;

/** What is sent to a webhook in one request. */
export interface Delivery {
  /** Id of the alert. */
  readonly id: string;
  readonly body: string;
}

/** One receiver of alerts. */
export class Webhook {
  /** Tells webhooks apart where their addresses, which may be secrets, must not stand. */
  readonly id: string;
  /** Its host and port, for people. */
  readonly name: string;
  readonly #config: WebhookConfig;

  constructor(config: WebhookConfig) {
    this.#config = config;
    this.id = createHash('sha256').update(config.url).digest('hex').slice(0, 16);
    this.name = new URL(config.url).host;
  }

  /** True when it is to be told of such events. */
  wants(event: AlertEvent): boolean {
    return this.#config.events?.includes(event) ?? true;
  }

  /**
   * Sends once. An answer other than 2xx counts as a failure, a redirect too: what is told must not go elsewhere.
   * @param nowMs stands in the signature, so that a receiver can refuse what somebody sends again later
   * @throws ObserveError ALERT_NOT_DELIVERED, ALERT_FILE_UNUSABLE; the reason of `signal`
   */
  async send(
    { id, body }: Delivery,
    { nowMs, signal }: { readonly nowMs: number; readonly signal: AbortSignal },
  ): Promise<void> {
    const { secretFile, caFile } = this.#config;
    const secret = secretFile === undefined ? null : await readSecret(secretFile);
    const ca = caFile === undefined ? undefined : await readCertificates(caFile);
    const headers = {
      'content-type': 'application/json',
      'content-length': String(Buffer.byteLength(body)),
      'user-agent': `stillpoint/${version}`,
      'stillpoint-alert': id,
      ...(secret === null ? {} : { 'stillpoint-signature': signatureOf(body, secret, nowMs) }),
    };
    const status = await this.#post(body, { headers, ca, signal });
    if (status >= 200 && status < 300) return;
    throw this.#undelivered(`it answered ${status}`);
  }

  async #post(
    body: string,
    how: {
      readonly headers: Readonly<Record<string, string>>;
      readonly ca: string | undefined;
      readonly signal: AbortSignal;
    },
  ): Promise<number> {
    const deadline = AbortSignal.timeout(deadlineMs);
    // That of the service lives on.
    using joined = new JoinedSignal([how.signal, deadline]);
    const url = new URL(this.#config.url);
    const options = {
      method: 'POST',
      headers: how.headers,
      signal: joined.signal,
      agent: false,
    } as const;
    // Whatever the environment says.
    const tls = { rejectUnauthorized: true, ca: how.ca };
    try {
      return await new Promise<number>((resolve, reject) => {
        const onResponse = (response: IncomingMessage): void => {
          resolve(response.statusCode ?? 0);
          // What it says is of no interest, and could be endless.
          response.destroy();
        };
        const request =
          url.protocol === 'https:'
            ? https.request(url, { ...options, ...tls }, onResponse)
            : http.request(url, options, onResponse);
        request.on('error', reject);
        request.end(body);
      });
    } catch (error) {
      if (how.signal.aborted) throw how.signal.reason;
      throw this.#undelivered(
        deadline.aborted ? `no answer in ${deadlineMs / 1000} s` : messageOf(error),
        error,
      );
    }
  }

  #undelivered(why: string, cause?: unknown): ObserveError {
    return new ObserveError(
      'ALERT_NOT_DELIVERED',
      `the webhook at ${this.name} did not take an alert: ${why}`,
      {
        hint: 'alerts.webhooks in the configuration',
        cause,
        retryable: true,
      },
    );
  }
}

/** `t=SECONDS,v1=HEX`: HMAC-SHA-256 of `SECONDS.BODY` with the secret. */
export function signatureOf(body: string, secret: Buffer, nowMs: number): string {
  const atSeconds = Math.floor(nowMs / 1000);
  const digest = createHmac('sha256', secret).update(`${atSeconds}.${body}`).digest('hex');
  return `t=${atSeconds},v1=${digest}`;
}

/** What stands in a file that nobody but its owner (us, or root) may read; one line end is no part of it. */
async function readSecret(path: string): Promise<Buffer> {
  try {
    // A pipe that nobody writes to must not hold us up.
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const status = await file.stat();
    if (!status.isFile()) throw new Error('it is no file');
    if (status.size === 0 || status.size > secretBytesMax) throw new Error(`it has ${status.size} bytes`);
    if (status.uid !== 0 && status.uid !== process.geteuid?.())
      throw new Error('it belongs to somebody else');
    if ((status.mode & 0o077) !== 0) throw new Error('others may read it');
    return Buffer.from((await file.readFile('utf8')).replace(/\r?\n$/, ''));
  } catch (error) {
    throw unusable(path, error, `chown root ${path}; chmod 600 ${path}`);
  }
}

async function readCertificates(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw unusable(path, error, `ls -l ${path}`);
  }
}

function unusable(path: string, cause: unknown, hint: string): ObserveError {
  const message = `no alert can be sent: ${path} cannot be used: ${messageOf(cause)}`;
  return new ObserveError('ALERT_FILE_UNUSABLE', message, { hint, cause, retryable: true });
}
