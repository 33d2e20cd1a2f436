import { hostname } from 'node:os';
import { join } from 'node:path';
import type { Logger } from '../../common/log.ts';
import type { Config } from '../../config/schema.ts';
import { bodyOf, type Notice } from './alert.ts';
import { compareAlerts } from './alertBook.ts';
import { type AlertState, readAlerts, type WaitingNotice, writeAlerts } from './alertFile.ts';
import type { HostStatus } from './hostStatus.ts';
import type { Problem } from './problems.ts';
import { Webhook } from './webhook.ts';

/** The oldest go when more wait for one webhook. */
const waitingMax = 500;
const firstDelayMs = 30_000;
const delayFactor = 2;
const maxDelayMs = 3_600_000;
/** What could not be told for so long is not told any more. */
const givenUpAfterMs = 3 * 86_400_000;

/** What waits for longer than anything can was given its time by a clock that was ahead. */
function isDue({ nextMs }: WaitingNotice, nowMs: number): boolean {
  return nextMs <= nowMs || nextMs - nowMs > maxDelayMs;
}

export interface AlertsOptions {
  readonly config: Config;
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** That of the host unless told. */
  readonly now?: (() => number) | undefined;
}

/**
 * Tells webhooks what is wrong on a host, and when it is right again. What lasts and what waits is in a file beside the
 * journal: a restart tells nothing twice and loses nothing. A webhook can be told the same once more all the same, when
 * its answer was lost; the id of the alert and its status tell. One that does not answer holds up no other one.
 */
export class Alerts {
  readonly #webhooks: readonly Webhook[];
  readonly #path: string;
  readonly #options: AlertsOptions;
  readonly #now: () => number;
  readonly #sending = new Map<string, Promise<void>>();
  #state: AlertState;
  #writing: Promise<void> = Promise.resolve();

  private constructor(options: AlertsOptions, path: string, state: AlertState) {
    const { config, now = Date.now } = options;
    this.#webhooks = config.alerts.webhooks.map((webhook) => new Webhook(webhook));
    this.#options = options;
    this.#path = path;
    this.#now = now;
    this.#state = state;
  }

  /** Takes up what was kept; a file that cannot be read is told of, and begun anew. */
  static async open(options: AlertsOptions): Promise<Alerts> {
    const path = join(options.config.agent.stateDir, 'alerts.json');
    const state = await readAlerts(path);
    if (state === null)
      options.log.error(
        { path },
        'what was kept about alerts cannot be read: what is wrong is told once more',
      );
    return new Alerts(options, path, state ?? { open: [], waiting: {} });
  }

  /** How many notices wait for a webhook. */
  get waiting(): number {
    return Object.values(this.#state.waiting).reduce((sum, { length }) => sum + length, 0);
  }

  /**
   * Takes note of what is wrong now, durably, and begins to send what is due. Never rejects for a webhook.
   * @throws the system's error when nothing can be written; what is to be told is sent all the same
   */
  async consider(status: HostStatus, problems: readonly Problem[]): Promise<void> {
    const { open, notices } = compareAlerts(this.#state.open, problems, status);
    for (const notice of notices) this.#tell(notice);
    const waiting = Object.fromEntries(
      this.#webhooks.map((webhook) => [webhook.id, this.#withNotices(webhook, notices)]),
    );
    const isChanged = notices.length > 0 || this.#hasForgotten(waiting);
    this.#state = { open: [...open], waiting };
    try {
      if (isChanged) await this.#keep();
    } finally {
      this.send();
    }
  }

  /** Waits of webhooks that the configuration does not have any more. */
  #hasForgotten(waiting: AlertState['waiting']): boolean {
    return Object.keys(this.#state.waiting).some((id) => waiting[id] === undefined);
  }

  #tell({ status, alert }: Notice): void {
    const { id, event, machine, storage, jobId, message } = alert;
    const about = {
      alert: id,
      event,
      ...(machine === null ? {} : { machine: machine.name, machineUuid: machine.uuid }),
      ...(storage === null ? {} : { storage }),
      ...(jobId === null ? {} : { jobId }),
    };
    if (status === 'firing') this.#options.log.warn(about, `alert: ${message}`);
    else this.#options.log.info(about, `alert is over: ${message}`);
  }

  #withNotices(webhook: Webhook, notices: readonly Notice[]): WaitingNotice[] {
    const before = this.#state.waiting[webhook.id] ?? [];
    const added = notices
      .filter(({ alert }) => webhook.wants(alert.event))
      .map((notice): WaitingNotice => ({ notice, attempts: 0, nextMs: this.#now() }));
    const all = [...before, ...added];
    const dropped = Math.max(0, all.length - waitingMax);
    if (dropped > 0)
      this.#options.log.error(
        { webhook: webhook.name, dropped },
        'too many alerts wait: the oldest are dropped',
      );
    return all.slice(dropped);
  }

  /** Begins to send what is due, to each webhook what is oldest first. */
  send(): void {
    for (const webhook of this.#webhooks) {
      if (this.#sending.has(webhook.id)) continue;
      const sending = this.#sendTo(webhook).finally(() => this.#sending.delete(webhook.id));
      this.#sending.set(webhook.id, sending);
    }
  }

  /** Resolves when nothing is being sent. */
  async settled(): Promise<void> {
    while (this.#sending.size > 0) await Promise.all(this.#sending.values());
    await this.#writing;
  }

  /** Never rejects. */
  async #sendTo(webhook: Webhook): Promise<void> {
    const { signal, log } = this.#options;
    try {
      while (!signal.aborted) {
        const first = this.#state.waiting[webhook.id]?.[0];
        if (first === undefined || !isDue(first, this.#now())) return;
        if (!(await this.#sendOne(webhook, first))) return;
      }
    } catch (error) {
      if (!signal.aborted)
        log.error({ webhook: webhook.name, err: error }, 'what alerts wait could not be kept');
    }
  }

  /** @returns whether the next one may be sent */
  async #sendOne(webhook: Webhook, waiting: WaitingNotice): Promise<boolean> {
    const { notice } = waiting;
    const failure = await this.#attempt(webhook, notice);
    if (failure === null) {
      await this.#replace(webhook, waiting, null);
      return true;
    }
    if (this.#options.signal.aborted) return false;
    const nowMs = this.#now();
    const attempts = waiting.attempts + 1;
    const isGivenUp = nowMs - notice.atMs > givenUpAfterMs;
    const about = { webhook: webhook.name, alert: notice.alert.id, status: notice.status, err: failure };
    // Each attempt would be too much to say, for days.
    if (attempts === 1) this.#options.log.error(about, 'alert could not be delivered, and is tried again');
    if (isGivenUp) this.#options.log.error(about, 'alert could not be delivered, and is given up');
    const nextMs = nowMs + Math.min(maxDelayMs, firstDelayMs * delayFactor ** (attempts - 1));
    await this.#replace(webhook, waiting, isGivenUp ? null : { ...waiting, attempts, nextMs });
    return isGivenUp;
  }

  /** null: it was taken. */
  async #attempt(webhook: Webhook, notice: Notice): Promise<Error | null> {
    const { signal } = this.#options;
    const delivery = { id: notice.alert.id, body: bodyOf(notice, hostname()) };
    try {
      await webhook.send(delivery, { nowMs: this.#now(), signal });
      return null;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      return error;
    }
  }

  /** What is first for a webhook has been sent, or is tried later; it may have been dropped meanwhile. */
  async #replace(webhook: Webhook, was: WaitingNotice, is: WaitingNotice | null): Promise<void> {
    const all = this.#state.waiting[webhook.id] ?? [];
    const { alert, status } = was.notice;
    const rest = all.map((waiting) => {
      const isIt = waiting.notice.alert.id === alert.id && waiting.notice.status === status;
      return isIt && waiting.notice.atMs === was.notice.atMs ? is : waiting;
    });
    const left = rest.filter((waiting) => waiting !== null);
    this.#state = { ...this.#state, waiting: { ...this.#state.waiting, [webhook.id]: left } };
    await this.#keep();
  }

  /** Writes come one after the other, and each writes what is so then. */
  #keep(): Promise<void> {
    const written = this.#writing.then(() => writeAlerts(this.#path, this.#state));
    // Who has asked for it is told.
    this.#writing = written.catch(() => undefined);
    return written;
  }
}
