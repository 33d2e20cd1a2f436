import { setTimeout as sleep } from 'node:timers/promises';
import type { Hypervisor, HypervisorEvent } from '../hypervisor/hypervisor.ts';

/**
 * Measures the pause of one machine from libvirt's own events: from the vCPUs' stop (the first `suspended`
 * after it was started) to the last `resumed`.
 */
export class PauseMeter implements AsyncDisposable {
  #stopped: { readonly atMs: number; readonly monotonicMs: number } | undefined;
  #resumedMonotonicMs: number | undefined;
  #unsubscribe: (() => Promise<void>) | undefined;
  readonly #resumed = Promise.withResolvers<void>();

  /** Starts listening; the machine must still run. */
  static async start(hypervisor: Hypervisor, uuid: string): Promise<PauseMeter> {
    const meter = new PauseMeter();
    meter.#unsubscribe = await hypervisor.subscribe((event) => meter.#hear(event, uuid));
    return meter;
  }

  #hear(event: HypervisorEvent, uuid: string): void {
    if (event.kind !== 'lifecycle' || event.uuid !== uuid) return;
    // libvirt announces the stopped vCPUs of a save as "suspended"; a suspended machine only as "stopped".
    if ((event.event === 'suspended' || event.event === 'stopped') && this.#stopped === undefined)
      this.#stopped = event;
    if (event.event === 'resumed' && this.#stopped !== undefined) {
      this.#resumedMonotonicMs = event.monotonicMs;
      this.#resumed.resolve();
    }
  }

  /** When the vCPUs stopped (T1); `undefined` until the event has come. */
  get stoppedAt(): Date | undefined {
    return this.#stopped === undefined ? undefined : new Date(this.#stopped.atMs);
  }

  /** Length of the pause; `null` when an event is missing. */
  get pauseMs(): number | null {
    if (this.#stopped === undefined || this.#resumedMonotonicMs === undefined) return null;
    return Math.max(0, this.#resumedMonotonicMs - this.#stopped.monotonicMs);
  }

  /** Waits for the event of the pause's end, which may arrive after the answer to `resume`. */
  async waitForPause(deadlineMs: number): Promise<number | null> {
    const timeout = new AbortController();
    await Promise.race([
      this.#resumed.promise,
      sleep(deadlineMs, undefined, { signal: timeout.signal }).catch(() => undefined),
    ]);
    timeout.abort();
    return this.pauseMs;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#unsubscribe?.();
    this.#unsubscribe = undefined;
  }
}
