import { nextOpen } from './windows.ts';
import { beginningOf, nextSlot, type Timetable } from './timetable.ts';

/** How a run ended. */
export type RunOutcome =
  | 'succeeded'
  | 'failed'
  /** Trying again cannot help before somebody has changed something. */
  | 'failed-for-good'
  /** The machine is not on this host any more: who has it now backs it up. */
  | 'left-host'
  | 'cancelled'
  /** The service was stopped, and gave it up: it is due again, and counts as no attempt. */
  | 'stopped';

/** The newest run that the schedule began. */
export interface ScheduledRun {
  readonly slotMs: number;
  /** From 1; more are retries. */
  readonly attempt: number;
  readonly startedMs: number;
  /** null: it has not ended, or nobody has said so. */
  readonly endedMs: number | null;
  /** It failed, and is tried again so long after its end. */
  readonly retryDelayMs: number | null;
  /** A stop of the service has ended it. */
  readonly stopped: boolean;
}

/**
 * What there is to remember about the schedule of one machine, durably. Plain data; all functions here return a new
 * one, or the same if nothing has changed. All times are those of the host's clock, which can be wrong.
 */
export interface ScheduleState {
  /** The slots up to this instant are done with: run, skipped, missed, or from before there was a schedule. */
  readonly handledThroughMs: number;
  readonly run: ScheduledRun | null;
  /** The clock shows less than what is written here, because it was set back; the least that it has shown since. */
  readonly setBackToMs: number | null;
}

/** What there is to say at the end of a run; everything but `retry` is the last word about its slot. */
export type RunWord =
  | { readonly kind: 'succeeded' | 'cancelled' }
  | { readonly kind: 'retry'; readonly atMs: number; readonly attempt: number }
  | {
      readonly kind: 'gave-up';
      readonly attempts: number;
      readonly why: 'no-retries-left' | 'next-run-comes-first' | 'retrying-cannot-help' | 'left-host';
      /** When the next slot begins; null: there is none. */
      readonly nextMs: number | null;
    };

/** Up to such a step back (the limit of cron(8)) nothing is run again that has run. */
const smallStepMs = 3 * 3_600_000;

/** The state of a machine that has just got a schedule: nothing is missed; with `every`, the first run is due now. */
export function newState({ slots, jitterMs }: Timetable, nowMs: number): ScheduleState {
  const handledThroughMs = slots.kind === 'every' ? nowMs - slots.everyMs + jitterMs : nowMs;
  return { handledThroughMs, run: null, setBackToMs: null };
}

/** The state after the schedule of a machine has changed: what the new one would have done before is not missed. */
export function underNewTimetable({ slots }: Timetable, state: ScheduleState, nowMs: number): ScheduleState {
  if (slots.kind === 'every') return state;
  return { ...state, handledThroughMs: Math.max(state.handledThroughMs, nowMs) };
}

/** Notices that the clock was set back, or is again where it was. */
export function withClockAt(state: ScheduleState, nowMs: number): ScheduleState {
  const { handledThroughMs, run } = state;
  const newestMs = Math.max(handledThroughMs, run?.startedMs ?? -Infinity, run?.endedMs ?? -Infinity);
  const setBackToMs = nowMs < newestMs ? Math.min(nowMs, state.setBackToMs ?? nowMs) : null;
  return setBackToMs === state.setBackToMs ? state : { ...state, setBackToMs };
}

/**
 * The instant up to which slots count as done with. After a clock was set back far, what is written down is about a
 * time that is yet to come; it must not keep backups from being made until then, so the new time counts at once.
 */
export function handledThrough(
  { slots }: Timetable,
  { handledThroughMs, setBackToMs }: ScheduleState,
): number {
  if (setBackToMs === null) return handledThroughMs;
  if (slots.kind === 'every') return Math.min(handledThroughMs, setBackToMs);
  return handledThroughMs - setBackToMs <= smallStepMs ? handledThroughMs : setBackToMs;
}

/** When a failed run is to be tried again, windows aside; null: it is not. */
export function retryAt({ run, setBackToMs }: ScheduleState): number | null {
  if (run === null || run.endedMs === null || run.retryDelayMs === null) return null;
  return Math.min(run.endedMs, setBackToMs ?? run.endedMs) + run.retryDelayMs;
}

/** Which attempt at its slot comes after a run. */
export function nextAttempt({ attempt, stopped }: Pick<ScheduledRun, 'attempt' | 'stopped'>): number {
  return stopped ? attempt : attempt + 1;
}

/** The state after a run has begun; write it down before the run does anything. */
export function begun(
  { slots }: Timetable,
  state: ScheduleState,
  {
    slotMs,
    attempt,
    why,
  }: { readonly slotMs: number; readonly attempt: number; readonly why: 'on-time' | 'missed' | 'retry' },
  nowMs: number,
): ScheduleState {
  const isRetry = why === 'retry';
  const handledThroughMs = slots.kind === 'every' ? nowMs : isRetry ? state.handledThroughMs : slotMs;
  const run = { slotMs, attempt, startedMs: nowMs, endedMs: null, retryDelayMs: null, stopped: false };
  return withClockAt({ handledThroughMs, run, setBackToMs: state.setBackToMs }, nowMs);
}

/** The state after a slot was skipped. */
export function skipped(state: ScheduleState, slotMs: number, nowMs: number): ScheduleState {
  const { run } = state;
  // Of a clock that was ahead nothing may stay, or the slot would seem to be yet to come.
  const atMost = (ms: number): number => Math.min(ms, nowMs);
  const known =
    run === null
      ? null
      : {
          ...run,
          startedMs: atMost(run.startedMs),
          endedMs: run.endedMs === null ? null : atMost(run.endedMs),
        };
  return { handledThroughMs: slotMs, run: known, setBackToMs: null };
}

/** The state after the end of the run, and what there is to say; `null` if its end is known already. */
export function ended(
  timetable: Timetable,
  state: ScheduleState,
  outcome: RunOutcome,
  nowMs: number,
): { readonly state: ScheduleState; readonly word: RunWord | null } {
  const { run } = state;
  if (run === null || run.endedMs !== null) return { state, word: null };
  const over = withClockAt({ ...state, run: { ...run, endedMs: nowMs } }, nowMs);
  if (outcome === 'succeeded' || outcome === 'cancelled') return { state: over, word: { kind: outcome } };
  const slotMs = nextSlot(timetable, handledThrough(timetable, over));
  const nextMs = slotMs === null ? null : beginningOf(timetable, slotMs);
  const gaveUp = (why: Extract<RunWord, { kind: 'gave-up' }>['why']) => ({
    state: over,
    word: { kind: 'gave-up' as const, attempts: run.attempt, why, nextMs },
  });
  if (outcome === 'left-host') return gaveUp('left-host');
  if (outcome === 'failed-for-good') return gaveUp('retrying-cannot-help');
  const { count, firstDelayMs, factor, maxDelayMs } = timetable.retries;
  const stopped = outcome === 'stopped';
  if (run.attempt > count && !stopped) return gaveUp('no-retries-left');
  const failureDelayMs = Math.min(maxDelayMs, Math.round(firstDelayMs * factor ** (run.attempt - 1)));
  const retryDelayMs = stopped ? 0 : failureDelayMs;
  const atMs = nextOpen(timetable.when, nowMs + retryDelayMs, timetable.clock);
  if (atMs === null || (nextMs !== null && nextMs <= atMs)) return gaveUp('next-run-comes-first');
  return {
    state: { ...over, run: { ...run, endedMs: nowMs, retryDelayMs, stopped } },
    word: { kind: 'retry', atMs, attempt: nextAttempt({ ...run, stopped }) },
  };
}
