import { setTimeout as sleep } from 'node:timers/promises';
import { errorRecord, StillpointError } from '../../common/errors.ts';
import type { Logger } from '../../common/log.ts';
import type { WatchEventsResponse } from '../../proto/generated/stillpoint/v1/agent.ts';
import type { Agent } from '../agent.ts';
import type { HypervisorEvent } from '../hypervisor/hypervisor.ts';
import { machineEventValues } from './enums.ts';
import { EventLog } from './eventLog.ts';
import { JobChanges } from './jobChanges.ts';
import type { JobSignals } from './jobSignals.ts';
import { serviceEnding } from './startedBackups.ts';
import { Wake } from './wake.ts';

const eventsMax = 4096;
/** Jobs of other processes are noticed so late. */
const lookIntervalMs = 1000;
/** libvirt is asked for its events again after this long. */
const againMs = 30_000;
/** Who was cut off for so long goes on where he was. */
const graceMs = 60_000;

type HostEvent = Omit<WatchEventsResponse, 'cursor'>;

export interface HostEventsOptions {
  readonly agent: Agent;
  readonly log: Logger;
  readonly signals: JobSignals;
  /** How long events are gathered after the last watcher has gone; a minute unless told. */
  readonly graceMs?: number | undefined;
}

/**
 * What happens on the host: states of jobs, of whatever process, and of machines. Nothing is gathered while nobody
 * watches, for libvirt's events take a process of their own; cursors from before that have expired then.
 */
export class HostEvents implements AsyncDisposable {
  readonly #options: HostEventsOptions;
  readonly #log = new EventLog<HostEvent>(eventsMax);
  readonly #watchers = new Set<Wake>();
  #gathering: Gathering | undefined;
  #leaving: NodeJS.Timeout | undefined;

  constructor(options: HostEventsOptions) {
    this.#options = options;
  }

  /**
   * Tells of what happens, behind a cursor or from now on, until the signal. The first response tells where it begins.
   * @throws ApiError CURSOR_EXPIRED, REQUEST_INVALID, SERVICE_ENDING
   */
  async *watch(cursor: string, signal: AbortSignal): AsyncGenerator<WatchEventsResponse> {
    const wake = new Wake();
    this.#enter(wake);
    try {
      await this.#gathering?.begun;
      let at = cursor === '' ? this.#log.end : cursor;
      // An expired one is told before anything else is.
      this.#log.after(at);
      yield { cursor: at, occurredAt: undefined, event: undefined };
      while (!signal.aborted) {
        for (const { cursor: behind, event } of this.#log.after(at)) {
          at = behind;
          yield { cursor: behind, ...event };
        }
        await wake.sleep(graceMs, signal);
      }
      throw serviceEnding();
    } finally {
      this.#leave(wake);
    }
  }

  #enter(wake: Wake): void {
    clearTimeout(this.#leaving);
    this.#watchers.add(wake);
    this.#gathering ??= new Gathering(this.#options, (event) => this.#append(event));
  }

  #append(event: HostEvent['event']): void {
    this.#log.append({ occurredAt: new Date(), event });
    for (const wake of this.#watchers) wake.up();
  }

  #leave(wake: Wake): void {
    this.#watchers.delete(wake);
    if (this.#watchers.size > 0) return;
    clearTimeout(this.#leaving);
    this.#leaving = setTimeout(() => void this.#endGathering(), this.#options.graceMs ?? graceMs);
    // A service that ends does not wait for somebody to come back.
    this.#leaving.unref();
  }

  async #endGathering(): Promise<void> {
    const gathering = this.#gathering;
    this.#gathering = undefined;
    this.#log.cut();
    await gathering?.end();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#leaving);
    await this.#endGathering();
  }
}

/** The sources of events, while somebody watches. */
class Gathering {
  readonly #options: HostEventsOptions;
  readonly #append: (event: HostEvent['event']) => void;
  readonly #ending = new AbortController();
  readonly #names = new Map<string, string>();
  readonly #work: Promise<unknown>;
  /** Resolves when events of machines arrive, or cannot be had. */
  readonly begun: Promise<void>;
  #unsubscribe: (() => Promise<void>) | undefined;

  constructor(options: HostEventsOptions, append: (event: HostEvent['event']) => void) {
    this.#options = options;
    this.#append = (event) => {
      if (!this.#ending.signal.aborted) append(event);
    };
    const changes = new JobChanges(options.agent);
    changes.look();
    this.begun = this.#subscribe();
    this.#work = Promise.all([this.#lookAtJobs(changes), this.begun.then(() => this.#subscribeAgain())]);
  }

  async #lookAtJobs(changes: JobChanges): Promise<void> {
    const { signal } = this.#ending;
    const wake = new Wake();
    using _ = this.#options.signals.onChange(() => wake.up());
    while (!signal.aborted) {
      await wake.sleep(lookIntervalMs, signal);
      try {
        for (const job of changes.look()) this.#append({ $case: 'job', value: job });
      } catch (error) {
        if (!(error instanceof StillpointError)) throw error;
        this.#options.log.warn({ err: error }, 'the jobs of this host could not be looked at');
      }
    }
  }

  async #subscribe(): Promise<void> {
    const { agent, log } = this.#options;
    try {
      this.#unsubscribe = await agent.parts.hypervisor.subscribe((event) => this.#hear(event));
      for (const { uuid, name } of await agent.parts.hypervisor.machines()) this.#names.set(uuid, name);
    } catch (error) {
      log.warn({ error: errorRecord(error) }, 'there are no events of machines: libvirt is away');
      this.#append({ $case: 'machinesUnknown', value: {} });
    }
  }

  async #subscribeAgain(): Promise<void> {
    const { signal } = this.#ending;
    while (!signal.aborted && this.#unsubscribe === undefined) {
      try {
        await sleep(againMs, undefined, { signal });
      } catch (error) {
        if (!signal.aborted) throw error;
        return;
      }
      await this.#subscribe();
    }
  }

  #hear(event: HypervisorEvent): void {
    if (event.kind === 'reconnected') this.#append({ $case: 'machinesUnknown', value: {} });
    if (event.kind !== 'lifecycle') return;
    const { uuid } = event;
    const kind = machineEventValues[event.event];
    const name = this.#names.get(uuid) ?? '';
    this.#append({ $case: 'machine', value: { machine: { uuid, name }, kind } });
    if (event.event === 'defined') void this.#learnName(uuid);
  }

  /** For the events that come: one that is waited for would overtake others. */
  async #learnName(uuid: string): Promise<void> {
    try {
      this.#names.set(uuid, (await this.#options.agent.parts.hypervisor.machine(uuid)).name);
    } catch (error) {
      this.#options.log.debug({ uuid, err: error }, 'the name of a machine could not be asked for');
    }
  }

  async end(): Promise<void> {
    this.#ending.abort();
    await this.#work;
    try {
      await this.#unsubscribe?.();
    } catch (error) {
      this.#options.log.warn({ err: error }, 'libvirt could not be told that its events are not listened to');
    }
  }
}
