import type { DatabaseSync } from 'node:sqlite';
import * as z from 'zod';
import type { JobPause } from './job.ts';

/** What a job's row says of a pause; all three are null where nobody wants one. */
export const pauseTables = `
  ALTER TABLE jobs ADD COLUMN pause_requested_at_ms INTEGER;
  ALTER TABLE jobs ADD COLUMN pause_until_ms INTEGER;
  ALTER TABLE jobs ADD COLUMN paused_since_ms INTEGER;
`;

/** In an UPDATE of `jobs`: nobody wants a pause any more. */
export const noPause = 'pause_requested_at_ms = NULL, pause_until_ms = NULL, paused_since_ms = NULL';

/** Columns of a row of `jobs`; an older journal that is only looked at has none of them. */
export const pauseColumns = z.object({
  pause_requested_at_ms: z.number().nullish(),
  pause_until_ms: z.number().nullish(),
  paused_since_ms: z.number().nullish(),
});

/** The pause in a row of `jobs`. */
export function pauseFrom(row: z.infer<typeof pauseColumns>): JobPause | null {
  const { pause_requested_at_ms: requestedAtMs, pause_until_ms: untilMs, paused_since_ms: sinceMs } = row;
  if (requestedAtMs == null || untilMs == null) return null;
  return { requestedAtMs, untilMs, sinceMs: sinceMs ?? null };
}

/** The pause that somebody wants of a job. */
export function readPause(db: DatabaseSync, jobId: string): JobPause | null {
  const row = db
    .prepare('SELECT pause_requested_at_ms, pause_until_ms, paused_since_ms FROM jobs WHERE id = ?')
    .get(jobId);
  return row === undefined ? null : pauseFrom(pauseColumns.parse(row));
}

/** Asks for a pause of a job that somebody works on; one that is paused already stays so, with another end. */
export function putPause(db: DatabaseSync, jobId: string, untilMs: number): void {
  const now = Date.now();
  db.prepare(
    `UPDATE jobs SET pause_requested_at_ms = COALESCE(pause_requested_at_ms, ?), pause_until_ms = ?, updated_at_ms = ?
     WHERE id = ? AND owner IS NOT NULL`,
  ).run(now, untilMs, now, jobId);
}

/** Takes a pause back. */
export function deletePause(db: DatabaseSync, jobId: string): void {
  db.prepare(`UPDATE jobs SET ${noPause}, updated_at_ms = ? WHERE id = ?`).run(Date.now(), jobId);
}

/** Writes down since when a job is held back; `null`: it is not, for now. */
export function putPausedSince(db: DatabaseSync, jobId: string, sinceMs: number | null): void {
  db.prepare(
    `UPDATE jobs SET paused_since_ms = ?, updated_at_ms = ? WHERE id = ? AND pause_requested_at_ms IS NOT NULL`,
  ).run(sinceMs, Date.now(), jobId);
}
