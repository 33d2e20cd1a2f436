import type { CronFields } from '../../common/cron.ts';
import type { ZoneClock } from './zone.ts';

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;
/** Between two February 29ths that are a certain weekday there can be 40 years, around a year such as 2100. */
const longestWaitDays = 41 * 366;

/**
 * The first instant after another at which a cron line is due by the clocks of a zone. When the clocks change:
 *
 * - A line that names hours means times on the clock, each of which is due once. One that the clocks jump over is
 *   due at the instant of the jump (several of them there once); of one that they show twice, the first.
 * - A line whose hours leave none out (`*`) means what goes by: it is due whenever the clocks show its minute, also in
 *   an hour that comes twice.
 *
 * @returns null when there is no such day in more than a generation, which `parseCron` refuses
 */
export function nextCron(cron: CronFields, afterMs: number, clock: ZoneClock): number | null {
  const eachHour = cron.hours.size === 24;
  let stretch = clock.stretchAt(afterMs);
  let shownMs = afterMs + stretch.offsetMs;
  for (;;) {
    // What the clocks had shown before they went back is done with.
    if (!eachHour) shownMs = Math.max(shownMs, stretch.startMs + stretch.previousOffsetMs - 1);
    const nextMs = nextShown(cron, shownMs);
    if (nextMs === null) return null;
    if (nextMs - stretch.offsetMs < stretch.endMs) return nextMs - stretch.offsetMs;
    const changeMs = stretch.endMs;
    const farMs = nextMs - 2 * dayMs;
    if (farMs > changeMs && changeMs + stretch.offsetMs - shownMs > dayMs) {
      // Nothing is named until then, so no change in between matters: none goes back as far as what was shown.
      stretch = clock.stretchAt(farMs);
      shownMs = farMs + stretch.offsetMs;
      continue;
    }
    const later = clock.stretchAt(changeMs);
    if (later.offsetMs !== stretch.offsetMs) {
      const jumpedOver = nextMs < changeMs + later.offsetMs;
      if (jumpedOver && !eachHour) return changeMs;
      // The first minute after the change counts.
      shownMs = changeMs + later.offsetMs - 1;
    }
    stretch = later;
  }
}

/**
 * The newest instant in (`afterMs`, `untilMs`] at which a cron line is due, by the rules of `nextCron`; null when
 * there is none.
 */
export function lastCron(
  cron: CronFields,
  { afterMs, untilMs }: { readonly afterMs: number; readonly untilMs: number },
  clock: ZoneClock,
): number | null {
  const dueAfter = (ms: number): number | null => {
    const dueMs = nextCron(cron, ms, clock);
    return dueMs !== null && dueMs <= untilMs ? dueMs : null;
  };
  let newestMs = dueAfter(afterMs);
  if (newestMs === null) return null;
  // Of months of absence, the end is what matters: half of what is left is skipped while something is due after it.
  let lowMs = newestMs;
  let highMs = untilMs;
  while (highMs - lowMs > minuteMs) {
    const middleMs = Math.floor((lowMs + highMs) / 2);
    const dueMs = dueAfter(middleMs);
    if (dueMs === null) highMs = middleMs;
    else {
      newestMs = dueMs;
      lowMs = dueMs;
    }
  }
  return dueAfter(newestMs) ?? newestMs;
}

/** The first clock time after another that a cron line names. */
function nextShown(cron: CronFields, shownMs: number): number | null {
  const fromMs = (Math.floor(shownMs / minuteMs) + 1) * minuteMs;
  const lastDayMs = fromMs + longestWaitDays * dayMs;
  for (let dayStartMs = Math.floor(fromMs / dayMs) * dayMs; dayStartMs < lastDayMs; ) {
    const day = new Date(dayStartMs);
    if (!cron.months.has(day.getUTCMonth() + 1)) {
      dayStartMs = Date.UTC(day.getUTCFullYear(), day.getUTCMonth() + 1, 1);
      continue;
    }
    const withinMs = namesDay(cron, day) ? nextOfDay(cron, Math.max(0, fromMs - dayStartMs)) : null;
    if (withinMs !== null) return dayStartMs + withinMs;
    dayStartMs += dayMs;
  }
  return null;
}

/** `day`: a day on the clocks, as in UTC; of a month that the line names. */
function namesDay(cron: CronFields, day: Date): boolean {
  const ofMonth = cron.daysOfMonth.has(day.getUTCDate());
  const ofWeek = cron.daysOfWeek.has(day.getUTCDay());
  return cron.eitherDay ? ofMonth || ofWeek : ofMonth && ofWeek;
}

/** The first time at or after another that a line names within a day, all from its beginning. */
function nextOfDay(cron: CronFields, fromMs: number): number | null {
  for (let hour = Math.floor(fromMs / hourMs); hour < 24; hour += 1) {
    if (!cron.hours.has(hour)) continue;
    const firstMinute = Math.max(0, Math.ceil((fromMs - hour * hourMs) / minuteMs));
    for (let minute = firstMinute; minute < 60; minute += 1)
      if (cron.minutes.has(minute)) return hour * hourMs + minute * minuteMs;
  }
  return null;
}
