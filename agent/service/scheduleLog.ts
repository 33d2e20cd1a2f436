import { aboutMachine, type Logger } from '../../common/log.ts';
import type { ScheduleDecision } from '../schedule/decide.ts';
import type { RunWord } from '../schedule/runState.ts';
import type { LastWord } from './scheduleBook.ts';
import type { ScheduledMachine } from './timetables.ts';

/** An instant as the log has it; null: there is none. */
function iso(instantMs: number | null): string | null {
  return instantMs === null ? null : new Date(instantMs).toISOString();
}

/** What the service says about schedules, each thing once. */
export class ScheduleLog {
  readonly #log: Logger;
  /** The next instant that was told, by UUID of the machine. */
  readonly #next = new Map<string, number | null>();

  constructor(log: Logger) {
    this.#log = log;
  }

  begun(
    machine: ScheduledMachine,
    {
      slotMs,
      attempt,
      why,
      waited,
    }: Extract<ScheduleDecision, { kind: 'begin' }> & { readonly waited: boolean },
    jobId: string,
  ): void {
    const about = { ...aboutMachine(machine), jobId, slot: iso(slotMs), attempt, why, waited };
    this.#log.info(about, 'scheduled backup begun');
  }

  waits(machine: ScheduledMachine, slotMs: number): void {
    const about = { ...aboutMachine(machine), slot: iso(slotMs) };
    this.#log.info(about, 'scheduled backup is due, and waits until another one has ended');
  }

  skipped(machine: ScheduledMachine, slotMs: number, jobId: string | null): void {
    const about = { ...aboutMachine(machine), slot: iso(slotMs), jobId };
    this.#log.warn(about, 'scheduled backup skipped: the machine has an unfinished job');
  }

  /** The end of a run; for everything but a retry the last word about its slot. */
  ended(machine: ScheduledMachine, said: RunWord, { slotMs, jobId, error }: LastWord): void {
    const about = { ...aboutMachine(machine), jobId, slot: iso(slotMs) };
    switch (said.kind) {
      case 'succeeded':
        this.#log.info(about, 'scheduled backup succeeded');
        return;
      case 'cancelled':
        this.#log.warn(about, 'scheduled backup was cancelled, and is not tried again');
        return;
      case 'retry': {
        const { attempt, atMs } = said;
        const what = { ...about, error, attempt, nextAt: iso(atMs) };
        this.#log.warn(what, 'scheduled backup failed, and is tried again');
        return;
      }
      case 'gave-up': {
        const { attempts, why, nextMs } = said;
        if (why === 'left-host') {
          const text = 'scheduled backup ended: the machine left this host, and is not tried again here';
          this.#log.warn({ ...about, error, attempts, why }, text);
          return;
        }
        const what = { ...about, error, attempts, why, nextAt: iso(nextMs) };
        this.#log.error(what, 'scheduled backup failed, and is not tried again');
      }
    }
  }

  parked(machine: ScheduledMachine, jobId: string): void {
    const about = { ...aboutMachine(machine), jobId };
    this.#log.error(about, `scheduled backup was left with work to do; type: stillpoint job show ${jobId}`);
  }

  /** When something is to be done about the machine next; null: never. */
  next(machine: ScheduledMachine, nextMs: number | null): void {
    if (this.#next.get(machine.uuid) === nextMs) return;
    this.#next.set(machine.uuid, nextMs);
    if (nextMs === null)
      this.#log.error(
        aboutMachine(machine),
        'nothing will ever be due: its windows are all within blackouts',
      );
    else this.#log.info({ ...aboutMachine(machine), nextAt: iso(nextMs) }, 'next scheduled backup');
  }

  /** The first of the instants that were told. */
  earliestMs(): number | null {
    const instants = [...this.#next.values()].filter((nextMs) => nextMs !== null);
    return instants.reduce<number | null>((first, nextMs) => Math.min(first ?? nextMs, nextMs), null);
  }

  /** The machine is not looked after any more. */
  gone(machine: ScheduledMachine): void {
    this.#next.delete(machine.uuid);
    this.#log.info(
      aboutMachine(machine),
      'machine is gone from this host, or has no schedule any more: nothing is due for it',
    );
  }

  clockSet(byMs: number): void {
    this.#log.warn(
      { byMs },
      'the clock was set, or the host was suspended: all schedules are looked at anew',
    );
  }

  failed(what: string, error: unknown, machine?: ScheduledMachine): void {
    this.#log.error({ ...(machine === undefined ? {} : aboutMachine(machine)), err: error }, what);
  }

  otherService(): void {
    this.#log.error('another process is the service of this host: this one acts on no schedule');
  }
}
