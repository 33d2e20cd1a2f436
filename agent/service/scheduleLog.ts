import type { Logger } from '../../common/log.ts';
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
    { name }: ScheduledMachine,
    {
      slotMs,
      attempt,
      why,
      waited,
    }: Extract<ScheduleDecision, { kind: 'begin' }> & { readonly waited: boolean },
    jobId: string,
  ): void {
    const about = { machine: name, jobId, slot: iso(slotMs), attempt, why, waited };
    this.#log.info(about, 'scheduled backup begun');
  }

  waits({ name }: ScheduledMachine, slotMs: number): void {
    const about = { machine: name, slot: iso(slotMs) };
    this.#log.info(about, 'scheduled backup is due, and waits until another one has ended');
  }

  skipped({ name }: ScheduledMachine, slotMs: number, jobId: string | null): void {
    const about = { machine: name, slot: iso(slotMs), jobId };
    this.#log.warn(about, 'scheduled backup skipped: the machine has an unfinished job');
  }

  /** The end of a run; for everything but a retry the last word about its slot. */
  ended({ name }: ScheduledMachine, said: RunWord, { slotMs, jobId, error }: LastWord): void {
    const about = { machine: name, jobId, slot: iso(slotMs) };
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
        const what = { ...about, error, attempts, why, nextAt: iso(nextMs) };
        this.#log.error(what, 'scheduled backup failed, and is not tried again');
      }
    }
  }

  parked({ name }: ScheduledMachine, jobId: string): void {
    const about = { machine: name, jobId };
    this.#log.error(about, `scheduled backup was left with work to do; type: stillpoint job show ${jobId}`);
  }

  /** When something is to be done about the machine next; null: never. */
  next({ uuid, name }: ScheduledMachine, nextMs: number | null): void {
    if (this.#next.get(uuid) === nextMs) return;
    this.#next.set(uuid, nextMs);
    if (nextMs === null)
      this.#log.error({ machine: name }, 'nothing will ever be due: its windows are all within blackouts');
    else this.#log.info({ machine: name, nextAt: iso(nextMs) }, 'next scheduled backup');
  }

  /** The first of the instants that were told. */
  earliestMs(): number | null {
    const instants = [...this.#next.values()].filter((nextMs) => nextMs !== null);
    return instants.reduce<number | null>((first, nextMs) => Math.min(first ?? nextMs, nextMs), null);
  }

  /** The machine is not looked after any more. */
  gone({ uuid, name }: ScheduledMachine): void {
    this.#next.delete(uuid);
    this.#log.info({ machine: name }, 'machine is gone from this host: its schedule rests');
  }

  clockSet(byMs: number): void {
    this.#log.warn(
      { byMs },
      'the clock was set, or the host was suspended: all schedules are looked at anew',
    );
  }

  failed(what: string, error: unknown, machine?: ScheduledMachine): void {
    this.#log.error({ machine: machine?.name, err: error }, what);
  }

  otherService(): void {
    this.#log.error('another process is the service of this host: this one acts on no schedule');
  }
}
