import { handledThrough, nextAttempt, retryAt, type ScheduleState, withClockAt } from './runState.ts';
import { beginningOf, newestDueSlot, nextSlot, type Timetable } from './timetable.ts';
import { closedAt, type ClosedReason, nextOpen } from './windows.ts';

/** What there is to do about the schedule of a machine now. */
export type ScheduleDecision =
  /** Begin a run: `begun` first. */
  | {
      readonly kind: 'begin';
      readonly slotMs: number;
      readonly attempt: number;
      /** `missed`: it could have begun before, and nobody was there; however many slots were missed, it is one run. */
      readonly why: 'on-time' | 'missed' | 'retry';
    }
  /** The slot is not run, because the machine's job before is unfinished: `skipped`, and tell. */
  | { readonly kind: 'skip'; readonly slotMs: number; readonly why: 'unfinished' }
  /** Nothing before an instant, or until a job of the machine ends. */
  | {
      readonly kind: 'wait';
      readonly untilMs: number;
      readonly why: 'not-due' | 'retry' | 'unfinished' | ClosedReason;
    }
  /** The run has not been said to have ended, and no job is there: find out how it ended, and say so to `ended`. */
  | { readonly kind: 'ask' }
  /** Nothing will ever be due: its windows are all within blackouts. */
  | { readonly kind: 'never' };

export interface Circumstances {
  /** What the host's clock shows. */
  readonly nowMs: number;
  /** The machine has an unfinished job, whoever began it. */
  readonly unfinished: boolean;
}

/** A run that begins later than this after it could have is one that was missed. */
const promptMs = 5 * 60_000;

/**
 * Decides what is to be done about a machine's schedule now. A pure function of what is asked and remembered; asking
 * early or often does no harm, and the answer to `wait` holds until its instant, unless a job of the machine ends, the
 * configuration changes, or the clock is set.
 *
 * The rules, in order: a slot begins only while windows are open and no blackout is; of several that are due the
 * newest counts for all; it is skipped where the machine has an unfinished job; a failed run is tried again unless a
 * slot is due; no slot is run twice, also when the clock is set back.
 *
 * @returns the state too: it differs when the clock was found to be set back, and then must be written down
 */
export function decideSchedule(
  timetable: Timetable,
  before: ScheduleState,
  { nowMs, unfinished }: Circumstances,
): { readonly state: ScheduleState; readonly decision: ScheduleDecision } {
  const state = withClockAt(before, nowMs);
  if (state.run?.endedMs === null && !unfinished) return { state, decision: { kind: 'ask' } };
  const { handledMs, dueSlotMs } = lookAtSlots(timetable, state, nowMs);
  const again = retryAt(state);
  const closed = closedAt(timetable.when, nowMs, timetable.clock);
  const retryIsDue = again !== null && again <= nowMs;
  if (closed !== null && (dueSlotMs !== null || retryIsDue)) {
    const untilMs = nextOpen(timetable.when, nowMs, timetable.clock);
    return { state, decision: untilMs === null ? { kind: 'never' } : { kind: 'wait', untilMs, why: closed } };
  }
  if (dueSlotMs !== null) return { state, decision: decideSlot(timetable, dueSlotMs, { nowMs, unfinished }) };
  if (retryIsDue && !unfinished && state.run !== null) {
    const { slotMs } = state.run;
    return { state, decision: { kind: 'begin', slotMs, attempt: nextAttempt(state.run), why: 'retry' } };
  }
  const decision = decideWait(timetable, { handledMs, retryMs: retryIsDue ? null : again, unfinished });
  return { state, decision };
}

/** What is due, and up to where all is done with. */
function lookAtSlots(
  timetable: Timetable,
  state: ScheduleState,
  nowMs: number,
): { readonly handledMs: number; readonly dueSlotMs: number | null } {
  const handledMs = handledThrough(timetable, state);
  const dueSlotMs = newestDueSlot(timetable, handledMs, nowMs);
  // The clock was set back far, and what was run last comes again.
  if (dueSlotMs === state.handledThroughMs) return { handledMs: dueSlotMs, dueSlotMs: null };
  return { handledMs, dueSlotMs };
}

function decideSlot(
  timetable: Timetable,
  slotMs: number,
  { nowMs, unfinished }: Circumstances,
): ScheduleDecision {
  if (unfinished) return { kind: 'skip', slotMs, why: 'unfinished' };
  const beginningMs = beginningOf(timetable, slotMs) ?? nowMs;
  return { kind: 'begin', slotMs, attempt: 1, why: nowMs - beginningMs > promptMs ? 'missed' : 'on-time' };
}

/** How long nothing is to be done: until the next slot begins, or a retry that comes first. */
function decideWait(
  timetable: Timetable,
  about: { readonly handledMs: number; readonly retryMs: number | null; readonly unfinished: boolean },
): ScheduleDecision {
  const { handledMs, retryMs, unfinished } = about;
  const slotMs = nextSlot(timetable, handledMs);
  const slotBeginsMs = slotMs === null ? null : beginningOf(timetable, slotMs);
  const retryBeginsMs = retryMs === null ? null : nextOpen(timetable.when, retryMs, timetable.clock);
  const why = unfinished ? 'unfinished' : 'not-due';
  if (retryBeginsMs !== null && (slotBeginsMs === null || retryBeginsMs < slotBeginsMs))
    return { kind: 'wait', untilMs: retryBeginsMs, why: unfinished ? why : 'retry' };
  return slotBeginsMs === null ? { kind: 'never' } : { kind: 'wait', untilMs: slotBeginsMs, why };
}
