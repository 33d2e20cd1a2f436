import type { ClockPeriod } from '../../common/clockPeriod.ts';
import type { ZoneClock } from './zone.ts';

/** When runs may begin. */
export interface Windows {
  /** Only in one of these; at any time if there are none. */
  readonly windows: readonly ClockPeriod[];
  /** Never in one of these. */
  readonly blackouts: readonly ClockPeriod[];
}

/** Why no run may begin. */
export type ClosedReason = 'blackout' | 'outside-windows';

const minuteMs = 60_000;
const dayMs = 86_400_000;

/**
 * Why no run may begin at an instant; null if one may. What the clocks show decides: an hour that comes twice is in a
 * period both times.
 */
export function closedAt(
  { windows, blackouts }: Windows,
  instantMs: number,
  clock: ZoneClock,
): ClosedReason | null {
  const shownMs = clock.clockAt(instantMs);
  if (blackouts.some((period) => contains(period, shownMs))) return 'blackout';
  if (windows.length > 0 && !windows.some((period) => contains(period, shownMs))) return 'outside-windows';
  return null;
}

/** The first instant, this one or later, at which a run may begin; null when there is none any more. */
export function nextOpen(when: Windows, instantMs: number, clock: ZoneClock): number | null {
  const periods = [...when.windows, ...when.blackouts];
  let atMs = instantMs;
  let lastEdgeMs = Number.NEGATIVE_INFINITY;
  for (const period of periods)
    if (period.kind === 'dates') lastEdgeMs = Math.max(lastEdgeMs, period.lastDayMs);
  // After a week in which only parts of weeks decided, the next ones are the same; the clocks may have changed in one.
  const untilMs = Math.max(instantMs, lastEdgeMs) + 16 * dayMs;
  while (closedAt(when, atMs, clock) !== null) {
    const edgeMs = nextEdge(periods, atMs, clock);
    if (edgeMs === null || edgeMs > untilMs) return null;
    atMs = edgeMs;
  }
  return atMs;
}

function contains(period: ClockPeriod, shownMs: number): boolean {
  const day = Math.floor(shownMs / dayMs);
  if (period.kind === 'dates') return day * dayMs >= period.firstDayMs && day * dayMs <= period.lastDayMs;
  const minute = (shownMs - day * dayMs) / minuteMs;
  const { days, fromMinute, toMinute } = period;
  const begunToday = days.has(weekdayOf(day)) && minute >= fromMinute && minute < toMinute;
  return begunToday || (days.has(weekdayOf(day - 1)) && minute + 1440 < toMinute);
}

/** Of a day counted from 1970, a Thursday. */
function weekdayOf(day: number): number {
  return (((day + 4) % 7) + 7) % 7;
}

/** The first instant after another at which a period can begin or end; null when none does any more. */
function nextEdge(periods: readonly ClockPeriod[], afterMs: number, clock: ZoneClock): number | null {
  let edgeMs = Number.POSITIVE_INFINITY;
  const consider = (instant: number): void => {
    if (instant > afterMs) edgeMs = Math.min(edgeMs, instant);
  };
  const today = Math.floor(clock.clockAt(afterMs) / dayMs);
  for (const period of periods)
    for (const shownMs of edgesOf(period, today)) {
      const { firstMs, lastMs } = clock.instantsOf(shownMs);
      consider(firstMs);
      consider(lastMs);
    }
  if (edgeMs === Number.POSITIVE_INFINITY) return null;
  // Where the clocks change, they can come out of a period or into one.
  consider(clock.stretchAt(afterMs).endMs);
  return edgeMs;
}

/** Beginnings and ends of a period, on the clocks; of a weekly one those from yesterday until in a week. */
function* edgesOf(period: ClockPeriod, today: number): Iterable<number> {
  if (period.kind === 'dates') {
    yield period.firstDayMs;
    yield period.lastDayMs + dayMs;
    return;
  }
  for (let day = today - 1; day <= today + 8; day += 1) {
    if (!period.days.has(weekdayOf(day))) continue;
    yield day * dayMs + period.fromMinute * minuteMs;
    yield day * dayMs + period.toMinute * minuteMs;
  }
}
