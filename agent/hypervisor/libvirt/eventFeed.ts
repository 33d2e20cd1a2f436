import { setTimeout as delay } from 'node:timers/promises';

import { HypervisorError } from '../errors.ts';
import type { HypervisorEvent, HypervisorListener } from '../hypervisor.ts';
import { Channel } from './channel.ts';
import { eventTime } from './eventTime.ts';
import { SharedChannel } from './sharedChannel.ts';

const backoffFirstMs = 100;
const backoffLastMs = 5_000;

/**
 * Domain events, from a child of their own while anybody listens: a query can be kept waiting inside
 * libvirtd for as long as a machine is locked, and an event that arrives meanwhile would be stamped late. Only while
 * nobody needs the time of an event to the millisecond, so outside of `warmUp`, it is lent for questions (`shared`).
 */
export class EventFeed {
  readonly #uri: string;
  readonly #deadlineMs: number;
  readonly #listeners = new Set<HypervisorListener>();
  #channel: Channel | undefined;
  /** The same, while it delivers. */
  #shared: SharedChannel | undefined;
  #connecting: Promise<void> | undefined;
  /** The feed was interrupted while somebody listened. */
  #interrupted = false;

  constructor(uri: string, deadlineMs: number) {
    this.#uri = uri;
    this.#deadlineMs = deadlineMs;
  }

  get pids(): readonly number[] {
    return this.#channel?.pid === undefined ? [] : [this.#channel.pid];
  }

  /** The child, where it delivers events: while none comes it can answer a question. */
  get shared(): SharedChannel | undefined {
    return this.#shared?.alive === true ? this.#shared : undefined;
  }

  /**
   * Resolves when events flow; from then on losses are made good by connecting again.
   * @throws HypervisorError
   */
  async subscribe(listener: HypervisorListener): Promise<() => Promise<void>> {
    // A listener of its own for each subscription: the same function may be given twice.
    const own: HypervisorListener = (event) => listener(event);
    this.#listeners.add(own);
    try {
      await this.#connect();
    } catch (error) {
      await this.#remove(own);
      throw error;
    }
    return () => this.#remove(own);
  }

  /** Ends the child at once; a question that it is about rejects. */
  async close(): Promise<void> {
    this.#listeners.clear();
    this.#channel?.kill();
    await this.#stop();
  }

  async #remove(listener: HypervisorListener): Promise<void> {
    this.#listeners.delete(listener);
    if (this.#listeners.size === 0) await this.#stop();
  }

  async #stop(): Promise<void> {
    const channel = this.#channel;
    const shared = this.#shared;
    this.#channel = undefined;
    this.#shared = undefined;
    this.#interrupted = false;
    if (shared !== undefined) return shared.retire();
    channel?.kill();
    await channel?.end;
  }

  #connect(): Promise<void> {
    if (this.#connecting !== undefined) return this.#connecting;
    if (this.#channel?.alive === true) return Promise.resolve();
    this.#connecting = this.#start().finally(() => {
      this.#connecting = undefined;
    });
    return this.#connecting;
  }

  async #start(): Promise<void> {
    const channel = new Channel(this.#uri, (event) => {
      // One that only answers a last question has nothing to tell.
      if (this.#channel === channel) this.#deliver(event);
    });
    this.#channel = channel;
    try {
      await channel.request('watchEvents', [], this.#deadlineMs);
    } catch (error) {
      channel.kill();
      throw error;
    }
    if (this.#channel === channel) this.#shared = new SharedChannel(channel);
    void channel.end.then(() => (this.#channel === channel ? this.#reconnect() : undefined));
    if (this.#interrupted) this.#deliver({ kind: 'reconnected', ...eventTime() });
    this.#interrupted = false;
  }

  async #reconnect(): Promise<void> {
    this.#interrupted = true;
    for (let waitMs = backoffFirstMs; this.#lost; waitMs = Math.min(waitMs * 2, backoffLastMs)) {
      await delay(waitMs, undefined, { ref: false });
      try {
        if (this.#lost) await this.#connect();
      } catch (error) {
        // Whoever calls meanwhile is told the same by that call; here it means to try again, later.
        if (!(error instanceof HypervisorError)) throw error;
      }
    }
  }

  get #lost(): boolean {
    return this.#listeners.size > 0 && this.#channel?.alive !== true;
  }

  #deliver(event: HypervisorEvent): void {
    for (const listener of this.#listeners) listener(event);
  }
}
