import type { ScheduleState } from './runState.ts';
import { beginningOf, nextSlot, type Timetable } from './timetable.ts';

/**
 * Since when a machine waits for a backup that its timetable has asked for; null: it does not. A backup that somebody
 * makes by hand counts like one of the schedule. Unlike the next instant at which something is done this does not move
 * on while runs fail.
 *
 * @param lastSuccessMs instant of the newest good backup; null: there is none
 */
export function dueSince(
  table: Timetable,
  { run, handledThroughMs }: Pick<ScheduleState, 'run' | 'handledThroughMs'>,
  { lastSuccessMs, nowMs }: { readonly lastSuccessMs: number | null; readonly nowMs: number },
): number | null {
  const slotMs = waitingSlot(table, { run, handledThroughMs }, lastSuccessMs);
  const sinceMs = slotMs === null ? null : beginningOf(table, slotMs);
  return sinceMs === null || sinceMs > nowMs ? null : sinceMs;
}

/** The first slot that no backup has served. */
function waitingSlot(
  table: Timetable,
  { run, handledThroughMs }: Pick<ScheduleState, 'run' | 'handledThroughMs'>,
  lastSuccessMs: number | null,
): number | null {
  // What the schedule would have done before it was there is not missed.
  if (run === null) return nextSlot(table, Math.max(lastSuccessMs ?? handledThroughMs, handledThroughMs));
  return lastSuccessMs === null ? run.slotMs : nextSlot(table, lastSuccessMs);
}
