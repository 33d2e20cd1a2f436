import { HypervisorError } from '../errors.ts';
import { Channel, deadlineExceeded } from './channel.ts';
import type { OperationArguments, OperationResult } from './channel.ts';
import type { OperationName } from './messages.ts';
import type { SharedChannel } from './sharedChannel.ts';

export interface PoolOptions {
  readonly uri: string;
  /** Children at most. */
  readonly limit: number;
  /** How long a request waits for a busy child before another one is started beside it. */
  readonly growAfterMs: number;
  /** A child that had nothing to do for so long is ended. */
  readonly idleMs: number;
  /** A child that somebody else keeps, and that can be asked something; see `ask`. */
  readonly shared?: () => SharedChannel | undefined;
}

/** Somebody who waits for a child. */
interface Waiting {
  readonly take: (channel: Channel) => void;
}

/**
 * Children for one kind of calls: started on demand, each with one call at a time, gone when idle. A child
 * costs about 30 MiB and 0.1 s to start.
 */
export class ChannelPool {
  readonly #options: PoolOptions;
  readonly #channels = new Set<Channel>();
  /** With the timers that end them; the most recently used last, so that the others get old. */
  readonly #idle = new Map<Channel, NodeJS.Timeout>();
  readonly #waiting = new Set<Waiting>();
  /** Shared children whose end will be told. */
  readonly #awaited = new WeakSet<SharedChannel>();
  #holders = 0;
  #keepers = 0;
  #emptied = Promise.withResolvers<void>();
  #closed = false;

  constructor(options: PoolOptions) {
    this.#options = options;
  }

  /** The processes, for measuring. */
  get pids(): readonly number[] {
    return [...this.#channels].flatMap(({ pid }) => pid ?? []);
  }

  /**
   * Performs one operation as soon as a child is free. The deadline includes the wait.
   * @throws HypervisorError
   */
  async request<Name extends OperationName>(
    operation: Name,
    args: OperationArguments<Name>,
    deadlineMs: number,
  ): Promise<OperationResult<Name>> {
    const startMs = performance.now();
    const channel = this.#takeIdle() ?? (await this.#waitForChannel(operation, deadlineMs));
    try {
      const leftMs = deadlineMs - (performance.now() - startMs);
      if (leftMs <= 0) throw deadlineExceeded(operation);
      return await channel.request(operation, args, leftMs);
    } finally {
      this.#release(channel);
    }
  }

  /**
   * Asks a question, which changes nothing. Where a child is to stay at hand (see `keepLast`) and somebody else keeps one,
   * it is that one that is asked, as long as there is none of our own: an idle process then has one child, not two. One
   * that is lost over the question, or busy for long, is replaced by one of our own. The deadline includes all of that.
   * @throws HypervisorError
   */
  async ask<Name extends OperationName>(
    operation: Name,
    args: OperationArguments<Name>,
    deadlineMs: number,
  ): Promise<OperationResult<Name>> {
    const startMs = performance.now();
    const leftMs = (): number => deadlineMs - (performance.now() - startMs);
    const shared = this.#isHeld || this.#channels.size > 0 ? undefined : this.#sharedToKeep;
    const patienceMs = Math.min(this.#options.growAfterMs, deadlineMs);
    if (shared === undefined || !(await shared.take(patienceMs)))
      return this.request(operation, args, leftMs());
    this.#tellItsEnd(shared);
    try {
      if (leftMs() <= 0) throw deadlineExceeded(operation);
      return await shared.request(operation, args, leftMs());
    } catch (error) {
      if (!isUnreachable(error)) throw error;
    } finally {
      shared.giveBack();
    }
    return this.request(operation, args, leftMs());
  }

  /** Keeps every child, idle or not, until the returned object is disposed. */
  hold(): Disposable {
    this.#holders += 1;
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (held) this.#holders -= 1;
        held = false;
      },
    };
  }

  /**
   * Lets the last child stay, however long it is idle, until the returned object is disposed. Where there is a shared
   * one, that is the one that stays.
   */
  keepLast(): Disposable {
    this.#keepers += 1;
    let kept = true;
    return {
      [Symbol.dispose]: () => {
        if (kept) this.#keepers -= 1;
        kept = false;
      },
    };
  }

  /** Resolves when no child is left of those that there are, or that come; that of another counts once it was asked. */
  get emptied(): Promise<void> {
    return this.#emptied.promise;
  }

  /** Ends all children; calls in flight reject. */
  async close(): Promise<void> {
    this.#closed = true;
    const channels = [...this.#channels];
    for (const channel of channels) channel.kill();
    await Promise.all(channels.map((channel) => channel.end));
  }

  get #isHeld(): boolean {
    return this.#holders > 0;
  }

  /** The child of another that does for the one that is to stay. */
  get #sharedToKeep(): SharedChannel | undefined {
    return this.#keepers > 0 ? this.#options.shared?.() : undefined;
  }

  /** Its end may leave nobody to ask. */
  #tellItsEnd(shared: SharedChannel): void {
    if (this.#awaited.has(shared)) return;
    this.#awaited.add(shared);
    void shared.end.then(() => this.#tellEmptied());
  }

  async #waitForChannel(operation: OperationName, deadlineMs: number): Promise<Channel> {
    if (this.#closed) throw closed();
    const { promise, resolve, reject } = Promise.withResolvers<Channel>();
    const waiting: Waiting = { take: resolve };
    this.#waiting.add(waiting);
    const deadline = setTimeout(() => reject(deadlineExceeded(operation)), deadlineMs);
    const growAfterMs = this.#channels.size === 0 ? 0 : this.#options.growAfterMs;
    const growth = setTimeout(() => this.#grow(), growAfterMs);
    try {
      return await promise;
    } finally {
      clearTimeout(deadline);
      clearTimeout(growth);
      this.#waiting.delete(waiting);
    }
  }

  #grow(): void {
    if (this.#channels.size >= this.#options.limit) return;
    const channel = new Channel(this.#options.uri);
    this.#channels.add(channel);
    void channel.end.then(() => this.#forget(channel));
    this.#release(channel);
  }

  #takeIdle(): Channel | undefined {
    for (const [channel, timer] of [...this.#idle].toReversed()) {
      clearTimeout(timer);
      this.#idle.delete(channel);
      if (channel.alive) return channel;
    }
    return undefined;
  }

  /** Gives a free child to whoever waits longest, or lets it become idle. */
  #release(channel: Channel): void {
    if (!channel.alive) return this.#forget(channel);
    const [next] = this.#waiting;
    if (next === undefined) return this.#rest(channel);
    this.#waiting.delete(next);
    next.take(channel);
  }

  #rest(channel: Channel): void {
    const timer = setTimeout(() => {
      const isLast = this.#keepers > 0 && this.#channels.size === 1;
      const isKept = this.#isHeld || (isLast && this.#sharedToKeep === undefined);
      if (isKept) return this.#rest(channel);
      this.#idle.delete(channel);
      channel.kill();
    }, this.#options.idleMs);
    // Being idle is no reason for the parent to live on.
    timer.unref();
    this.#idle.set(channel, timer);
  }

  #forget(channel: Channel): void {
    clearTimeout(this.#idle.get(channel));
    this.#idle.delete(channel);
    this.#channels.delete(channel);
    // Whoever waits would wait for the one that is gone.
    if (this.#waiting.size > 0 && !this.#closed) this.#grow();
    this.#tellEmptied();
  }

  #tellEmptied(): void {
    if (this.#channels.size > 0) return;
    this.#emptied.resolve();
    this.#emptied = Promise.withResolvers();
  }
}

function isUnreachable(error: unknown): boolean {
  return error instanceof HypervisorError && error.code === 'HYPERVISOR_UNREACHABLE';
}

function closed(): HypervisorError {
  return new HypervisorError('HYPERVISOR_UNREACHABLE', 'this connection to libvirt was closed');
}
