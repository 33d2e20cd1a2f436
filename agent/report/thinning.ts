import type { DatabaseSync } from 'node:sqlite';
import * as z from 'zod';
import { thinnedFrom } from './outboxTables.ts';
import type { ThinnedCount } from './report.ts';

const saidLater = `EXISTS (
  SELECT 1 FROM reports AS later
  WHERE later.kind = reports.kind AND later.subject = reports.subject AND later.sequence > reports.sequence)`;

/**
 * What goes, one stage after the other, each from its oldest report on, until there is room. What is on its way is never
 * among it: it may have arrived.
 */
const stages = [
  { which: `weight = 'state' AND ${saidLater}`, isSaidLater: true },
  // Each report of a job has all of it: with a later one, of its progress or its end, nothing is lost.
  { which: `weight = 'progress' AND ${saidLater}`, isSaidLater: true },
  { which: `weight IN ('state', 'progress')`, isSaidLater: false },
  { which: `weight = 'lasting'`, isSaidLater: false },
] as const;

const candidatesAtOnce = 256;

const candidateSchema = z.object({
  sequence: z.number(),
  kind: z.string(),
  subject: z.string(),
  weight: z.string(),
  time_ms: z.number(),
});

type Candidate = z.output<typeof candidateSchema>;

/**
 * Makes room by the rule, inside a transaction of the caller, and counts what went in `thinned`.
 * @param sentThrough what is on its way stays
 * @returns whether anything went
 */
export function thin(
  db: DatabaseSync,
  { goalBytes, sentThrough }: { readonly goalBytes: number; readonly sentThrough: number },
): boolean {
  let isThinned = false;
  for (const { which, isSaidLater } of stages) {
    const find = db.prepare(
      `SELECT sequence, kind, subject, weight, time_ms FROM reports
       WHERE ${which} AND kind != 'thinned' AND sequence > ? ORDER BY sequence LIMIT ${candidatesAtOnce}`,
    );
    while (pendingBytes(db) > goalBytes) {
      const candidates = find.all(sentThrough).map((row) => candidateSchema.parse(row));
      if (candidates.length === 0) break;
      for (const candidate of candidates) {
        if (pendingBytes(db) <= goalBytes) break;
        leaveOut(db, candidate, isSaidLater);
        isThinned = true;
      }
    }
  }
  return isThinned;
}

/** What all reports take. */
export function pendingBytes(db: DatabaseSync): number {
  return z.object({ total: z.number() }).parse(db.prepare('SELECT SUM(size_bytes) AS total FROM sizes').get())
    .total;
}

function leaveOut(db: DatabaseSync, candidate: Candidate, isSaidLater: boolean): void {
  const { sequence, kind, subject, weight, time_ms: timeMs } = candidate;
  db.prepare('DELETE FROM reports WHERE sequence = ?').run(sequence);
  if (isSaidLater) {
    countSuperseded(db, kind, 1);
    return;
  }
  db.prepare(
    `INSERT INTO thinned (kind, superseded, lost, first_lost_ms, last_lost_ms) VALUES (?, 0, 1, ?, ?)
     ON CONFLICT (kind) DO UPDATE SET lost = lost + 1,
       first_lost_ms = MIN(COALESCE(first_lost_ms, excluded.first_lost_ms), excluded.first_lost_ms),
       last_lost_ms = MAX(COALESCE(last_lost_ms, excluded.last_lost_ms), excluded.last_lost_ms)`,
  ).run(kind, timeMs, timeMs);
  // It is told again as soon as somebody looks.
  if (weight === 'state')
    db.prepare('UPDATE told SET is_sure = 0 WHERE kind = ? AND subject = ?').run(kind, subject);
}

/** Counts reports whose content is said again. */
export function countSuperseded(db: DatabaseSync, kind: string, count: number): void {
  db.prepare(
    `INSERT INTO thinned (kind, superseded, lost) VALUES (?, ?, 0)
     ON CONFLICT (kind) DO UPDATE SET superseded = superseded + excluded.superseded`,
  ).run(kind, count);
}

/** Everything that was left out since the outbox was made. */
export function thinnedCounts(db: DatabaseSync): readonly ThinnedCount[] {
  return db.prepare('SELECT * FROM thinned ORDER BY kind').all().map(thinnedFrom);
}
