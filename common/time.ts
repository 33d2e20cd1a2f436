const pointInTimeForm = /^(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})\.(\d{3})Z$/;

/** A point in time as it stands in file names: `20261120T151523.123Z`. */
export function formatPointInTime(time: Date): string {
  return time.toISOString().replace(/[-:]/g, '');
}

/** The moment that a name like `20261120T151523.123Z` means, or `null` if it is not such a name. */
export function parsePointInTime(text: string): Date | null {
  const parts = pointInTimeForm.exec(text);
  if (parts === null) return null;
  const [, year, month, day, hour, minute, second, ms] = parts;
  const time = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}.${ms}Z`);
  // Date turns February 30th into March: only what reads back the same is a time.
  return !Number.isNaN(time.getTime()) && formatPointInTime(time) === text ? time : null;
}

/** A duration for people: `87 ms`, `2.3 s`, `4 min 05 s`, `3 h 20 min`. */
export function formatDuration(durationMs: number): string {
  if (durationMs < 999.5) return `${Math.round(durationMs)} ms`;
  if (durationMs < 59_950) return `${(durationMs / 1000).toFixed(1)} s`;
  const seconds = Math.round(durationMs / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, '0')} s`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, '0')} min`;
}
