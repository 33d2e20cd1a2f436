import type { ScheduleReport } from '../agent/service/report.ts';

const iso = (instantMs: number | null): string | null =>
  instantMs === null ? null : new Date(instantMs).toISOString();

/** When the next backup of a schedule begins, seen at a time (milliseconds since 1970). */
export function nextText({ nextMs }: ScheduleReport, nowMs: number): string {
  if (nextMs === null) return 'never: its windows are closed';
  return nextMs <= nowMs ? 'due' : new Date(nextMs).toISOString();
}

const whatBecame = {
  skipped: 'was skipped: the machine had an unfinished job',
  cancelled: 'was cancelled',
  retry: 'failed, and is tried again',
  'gave-up': 'failed, and is not tried again',
} as const;

/** What is to be remarked about the last run of a schedule; null: it succeeded, or there was none. */
export function lastRunText({ lastWord }: ScheduleReport): string | null {
  if (lastWord === null || lastWord.kind === 'succeeded') return null;
  const { kind, slotMs, error } = lastWord;
  const why = error === null ? '' : `: ${error.code}: ${error.message}`;
  return `scheduled backup of ${iso(slotMs)} ${whatBecame[kind]}${why}`;
}

/** A schedule as `--json` prints it. */
export function scheduleJson({ nextMs, run, lastWord, dueSinceMs }: ScheduleReport): unknown {
  return {
    nextAt: iso(nextMs),
    dueSince: iso(dueSinceMs),
    run:
      run === null
        ? null
        : {
            slot: iso(run.slotMs),
            attempt: run.attempt,
            startedAt: iso(run.startedMs),
            endedAt: iso(run.endedMs),
            jobId: run.jobId,
          },
    last:
      lastWord === null
        ? null
        : {
            result: lastWord.kind,
            slot: iso(lastWord.slotMs),
            at: iso(lastWord.atMs),
            jobId: lastWord.jobId,
            error: lastWord.error,
          },
  };
}
