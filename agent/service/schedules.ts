import type { Logger } from '../../common/log.ts';
import { Wake } from '../../common/wake.ts';
import type { Agent } from '../agent.ts';
import type { HypervisorEvent } from '../hypervisor/hypervisor.ts';
import type { Pulse } from './pulse.ts';
import { ScheduleLog } from './scheduleLog.ts';
import { Scheduler } from './scheduler.ts';

/** The machines of the host are looked at so often, should an event have been lost. */
const refreshMs = 60_000;
/**
 * Each backup in mode `save` stops and starts its machine, and of thousands there is always one that does. So looks at
 * all of them because of events take a five-hundredth of a processor at the most, and have libvirt at work for a tenth
 * of the time.
 */
const rest = { timesOurProcessor: 499, timesTheLook: 9 } as const;

/**
 * Acts on the schedules of the policies until `signal`; then begins nothing more, and returns when the backups that it
 * has begun are at their end. What cannot be done now is told in the log and tried again. While no policy has a
 * schedule, libvirt is not asked for anything.
 */
export async function actOnSchedules(
  agent: Agent,
  { log, signal, pulse }: { readonly log: Logger; readonly signal: AbortSignal; readonly pulse: Pulse },
): Promise<void> {
  const wake = new Wake(signal);
  const scheduler = new Scheduler({ agent, log, onChange: () => wake.up() });
  const machines = new MachineWatch(agent, scheduler, { log: new ScheduleLog(log), wake });
  const unfollow = agent.onFollow(() => {
    scheduler.follow();
    machines.lookAtOnce();
  });
  pulse.nextDueMs = () => scheduler.nextDueMs();
  while (!signal.aborted) {
    pulse.looked('schedules');
    const lookAgainMs = scheduler.isNeeded ? machines.lookIfNeeded() : refreshMs;
    await wake.sleep(Math.min(scheduler.lookAtDue(), lookAgainMs));
  }
  unfollow();
  // The scheduler first: libvirt may keep the other one waiting, and nothing may begin meanwhile.
  await Promise.all([scheduler.end(), machines.end()]);
}

/** Keeps the scheduler told of the machines of the host, without ever holding it up. */
class MachineWatch {
  readonly #agent: Agent;
  readonly #scheduler: Scheduler;
  readonly #log: ScheduleLog;
  readonly #wake: Wake;
  #unsubscribe: (() => Promise<void>) | undefined;
  #look: Promise<void> | undefined;
  #dueMs = 0;
  /** Until then events are only remembered. */
  #restsUntilMs = 0;
  /** The policies are others: nothing begins before the next look. */
  #isUrgent = false;

  constructor(
    agent: Agent,
    scheduler: Scheduler,
    { log, wake }: { readonly log: ScheduleLog; readonly wake: Wake },
  ) {
    this.#agent = agent;
    this.#scheduler = scheduler;
    this.#log = log;
    this.#wake = wake;
  }

  /** @returns after how many milliseconds to call it again, at the latest */
  lookIfNeeded(): number {
    const nowMs = performance.now();
    const waitMs = this.#isUrgent ? 0 : Math.max(this.#dueMs, this.#restsUntilMs) - nowMs;
    if (waitMs > 0) return waitMs;
    if (this.#look === undefined) this.#begin(nowMs);
    return refreshMs;
  }

  #begin(nowMs: number): void {
    this.#dueMs = nowMs + refreshMs;
    this.#isUrgent = false;
    this.#look = this.#refresh().finally(() => {
      this.#look = undefined;
      this.#wake.up();
    });
  }

  lookAtOnce(): void {
    this.#isUrgent = true;
    this.#wake.up();
  }

  /** Never rejects. */
  async #refresh(): Promise<void> {
    try {
      this.#unsubscribe ??= await this.#agent.parts.hypervisor.subscribe((event) => this.#hear(event));
      const [beganMs, before] = [performance.now(), process.cpuUsage()];
      await this.#scheduler.refresh();
      const endedMs = performance.now();
      const { user, system } = process.cpuUsage(before);
      const ourMs = (user + system) / 1000;
      const restMs = Math.max(rest.timesOurProcessor * ourMs, rest.timesTheLook * (endedMs - beganMs));
      this.#restsUntilMs = endedMs + Math.min(refreshMs, restMs);
    } catch (error) {
      this.#log.failed('the machines of this host could not be looked at', error);
    }
  }

  #hear(event: HypervisorEvent): void {
    const concerns =
      event.kind === 'reconnected' ||
      (event.kind === 'lifecycle' && ['defined', 'undefined', 'started', 'stopped'].includes(event.event));
    if (!concerns) return;
    this.#dueMs = 0;
    this.#wake.up();
  }

  async end(): Promise<void> {
    await this.#look;
    try {
      await this.#unsubscribe?.();
    } catch (error) {
      this.#log.failed('libvirt could not be told that its events are not listened to any more', error);
    }
  }
}
