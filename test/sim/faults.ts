import { setTimeout as sleep } from 'node:timers/promises';

import type { Hypervisor } from '../../agent/hypervisor/hypervisor.ts';
import { Interruption } from './errors.ts';

/** Operations of the port, which faults and delays are given for. */
export type Operation = Exclude<keyof Hypervisor, symbol>;

/** Places inside long operations at which a test can hold the world still. */
export type Point =
  /** vCPUs stopped, state file carries the magic of an incomplete one. */
  | 'save:part'
  /** Memory written, magic not yet changed. */
  | 'save:memory'
  /** State file complete, QEMU still there. */
  | 'save:complete'
  /** QEMU started, memory not loaded. */
  | 'restore:starting'
  /** A live snapshot writes memory while the vCPUs run. */
  | 'snapshot:memory'
  /** vCPUs stopped, all memory written. */
  | 'snapshot:stopped'
  /** State file complete, overlays not yet in use. */
  | 'snapshot:complete'
  | 'commit:started'
  | 'commit:half'
  /** The base has been written to, the job is not ready. */
  | 'commit:copied'
  | 'pull:started'
  | 'pull:half'
  /** All data copied, header not yet changed. */
  | 'pull:copied'
  /** Header changed, job gone from QEMU, which libvirtd has yet to note. */
  | 'pull:dismissed';

/** A held point. */
export interface Gate {
  /** Resolves when an operation stands at the point. */
  readonly reached: Promise<void>;
  /** Lets it, and all later ones, go on. */
  release(): void;
}

/** What a test does to the world's operations: hold, fail, delay. */
export class Faults {
  readonly #gates = new Map<Point, { arrive: () => void; released: Promise<void> }>();
  readonly #failures: { operation: Operation; error: Error; moment: 'before' | 'after' }[] = [];
  readonly #delays = new Map<Operation, number>();

  hold(point: Point): Gate {
    const arrival = Promise.withResolvers<void>();
    const release = Promise.withResolvers<void>();
    this.#gates.set(point, { arrive: arrival.resolve, released: release.promise });
    return {
      reached: arrival.promise,
      release: () => {
        this.#gates.delete(point);
        release.resolve();
      },
    };
  }

  failNext(operation: Operation, error: Error, moment: 'before' | 'after'): void {
    this.#failures.push({ operation, error, moment });
  }

  delay(operation: Operation, delayMs: number): void {
    this.#delays.set(operation, delayMs);
  }

  /** Goes past a point, or waits there until it is released. @throws Interruption */
  async pass(point: Point, signal: AbortSignal): Promise<void> {
    const gate = this.#gates.get(point);
    if (gate !== undefined) {
      gate.arrive();
      await Promise.race([gate.released, aborted(signal)]);
    }
    throwIfInterrupted(signal);
  }

  async applyDelay(operation: Operation): Promise<void> {
    const delayMs = this.#delays.get(operation);
    if (delayMs !== undefined) await sleep(delayMs);
  }

  throwFailure(operation: Operation, moment: 'before' | 'after'): void {
    const at = this.#failures.findIndex((one) => one.operation === operation && one.moment === moment);
    const [failure] = at === -1 ? [] : this.#failures.splice(at, 1);
    if (failure !== undefined) throw failure.error;
  }
}

export function throwIfInterrupted(signal: AbortSignal): void {
  if (signal.aborted) throw signal.reason instanceof Interruption ? signal.reason : new Interruption('abort');
}

export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
