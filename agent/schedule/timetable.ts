import { createHash } from 'node:crypto';
import { parseClockPeriod } from '../../common/clockPeriod.ts';
import { type CronFields, parseCron } from '../../common/cron.ts';
import { intervalMs } from '../../common/span.ts';
import type { ScheduleConfig } from '../../config/schema.ts';
import { lastCron, nextCron } from './cron.ts';
import { nextOpen, type Windows } from './windows.ts';
import type { ZoneClock } from './zone.ts';

/** What happens after a run that failed. */
export interface RetryRule {
  /** So many more attempts; 0: none. */
  readonly count: number;
  readonly firstDelayMs: number;
  /** Each delay is so many times as long as the one before, up to `maxDelayMs`. */
  readonly factor: number;
  readonly maxDelayMs: number;
}

/**
 * When one machine is backed up: the schedule of a policy, with everything decided. A *slot* is an instant that the
 * schedule names; each one is meant for one run. It is *due* a little later, by the machine's share of the jitter, and
 * begins at the first instant from then on at which runs may begin.
 */
export interface Timetable {
  readonly slots:
    | { readonly kind: 'cron'; readonly cron: CronFields }
    /** So long after the last run began. */
    | { readonly kind: 'every'; readonly everyMs: number };
  /** This machine's share of the jitter. With `every` it moves the first run only, and with it all others. */
  readonly jitterMs: number;
  readonly when: Windows;
  readonly retries: RetryRule;
  readonly clock: ZoneClock;
}

/**
 * The timetable of a machine.
 *
 * @param options.clock of the time zone in which hours and days are meant; one for all machines of a zone, for it
 * remembers what it has looked up
 * @param options.seed what stays the same of the machine, its UUID: it decides its share of the jitter
 * @throws RangeError for what the schema of the configuration refuses
 */
export function timetableOf(
  schedule: ScheduleConfig,
  { clock, seed }: { readonly clock: ZoneClock; readonly seed: string },
): Timetable {
  const { cron, every, retries } = schedule;
  if ((cron === undefined) === (every === undefined))
    throw new RangeError('a schedule has either cron or every');
  const slots =
    cron === undefined
      ? { kind: 'every' as const, everyMs: intervalMs(every ?? '') }
      : { kind: 'cron' as const, cron: parseCron(cron) };
  const longestMs = schedule.jitterSeconds * 1000;
  const spreadMs = slots.kind === 'every' ? Math.min(longestMs, slots.everyMs) : longestMs;
  return {
    slots,
    jitterMs: Math.floor(fractionOf(seed) * spreadMs),
    when: {
      windows: schedule.windows.map(parseClockPeriod),
      blackouts: schedule.blackouts.map(parseClockPeriod),
    },
    retries: {
      count: retries.count,
      firstDelayMs: retries.firstDelaySeconds * 1000,
      factor: retries.factor,
      maxDelayMs: retries.maxDelaySeconds * 1000,
    },
    clock,
  };
}

/** The first slot after another one; null when there is none any more. */
export function nextSlot({ slots, clock }: Timetable, afterMs: number): number | null {
  return slots.kind === 'every' ? afterMs + slots.everyMs : nextCron(slots.cron, afterMs, clock);
}

/** The newest slot after `afterMs` that is due at `nowMs`; null when none is. */
export function newestDueSlot(timetable: Timetable, afterMs: number, nowMs: number): number | null {
  const { slots, clock } = timetable;
  const untilMs = nowMs - delayMs(timetable);
  if (untilMs <= afterMs) return null;
  if (slots.kind === 'cron') return lastCron(slots.cron, { afterMs, untilMs }, clock);
  const count = Math.floor((untilMs - afterMs) / slots.everyMs);
  return count === 0 ? null : afterMs + count * slots.everyMs;
}

/** The first instant at which the run of a slot may begin; null when there is none. */
export function beginningOf(timetable: Timetable, slotMs: number): number | null {
  return nextOpen(timetable.when, slotMs + delayMs(timetable), timetable.clock);
}

function delayMs({ slots, jitterMs }: Timetable): number {
  return slots.kind === 'every' ? 0 : jitterMs;
}

/** A number from 0 to just below 1 that is always the same for a text, and even over many texts. */
function fractionOf(text: string): number {
  return createHash('sha256').update(text).digest().readUIntBE(0, 6) / 2 ** 48;
}
