import type { DatabaseSync } from 'node:sqlite';
import * as z from 'zod';

/**
 * Since version 3 of the journal: which jobs have changed, in the order of their last changes. The database itself keeps
 * that, so whoever writes a job, in whatever process, leaves it to be seen.
 */
export const changeTables = `
  CREATE TABLE job_changes (
    change INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE REFERENCES jobs (id) ON DELETE CASCADE
  ) STRICT;
  INSERT INTO job_changes (job_id) SELECT id FROM jobs ORDER BY created_at_ms, id;
  CREATE TRIGGER job_created AFTER INSERT ON jobs BEGIN
    INSERT OR REPLACE INTO job_changes (job_id) VALUES (NEW.id);
  END;
  -- A step begins and ends with a write of its job.
  CREATE TRIGGER job_changed AFTER UPDATE OF state, error, holds_machine, owner, finished_at_ms ON jobs BEGIN
    INSERT OR REPLACE INTO job_changes (job_id) VALUES (NEW.id);
  END;
  -- Numbers of changes mean something within one journal only.
  CREATE TABLE journal_identity (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    id TEXT NOT NULL
  ) STRICT;
  INSERT INTO journal_identity (only_one, id) VALUES (1, lower(hex(randomblob(16))));
`;

/** How far somebody has read the changes of a journal. */
export interface ChangeCursor {
  /** Of which journal: it may have been put in the place of another. */
  readonly journal: string;
  readonly change: number;
}

/** Jobs that have changed, each with the number of its last change, in the order of these. */
export interface ChangedJobs<Job> {
  readonly jobs: readonly Job[];
  /** From where to read on. */
  readonly cursor: ChangeCursor;
  /** There may be more after these. */
  readonly more: boolean;
}

const changeSchema = z.object({ change: z.number() });

/** Rows of `jobs` that have changed after a cursor; all of them where the cursor is none of this journal. */
export function changedJobRows(
  db: DatabaseSync,
  after: ChangeCursor | undefined,
  limit: number,
): ChangedJobs<unknown> {
  const { id: journal } = z
    .object({ id: z.string() })
    .parse(db.prepare('SELECT id FROM journal_identity').get());
  const last = changeSchema
    .optional()
    .parse(db.prepare(`SELECT seq AS change FROM sqlite_sequence WHERE name = 'job_changes'`).get());
  // A journal that was set back counts the same numbers a second time, for other changes.
  const isOurs = after?.journal === journal && after.change <= (last?.change ?? 0);
  const from = isOurs ? after.change : 0;
  const rows = db
    .prepare(
      `SELECT job_changes.change, jobs.* FROM job_changes JOIN jobs ON jobs.id = job_changes.job_id
       WHERE job_changes.change > ? ORDER BY job_changes.change LIMIT ?`,
    )
    .all(from, limit);
  const newest = rows.at(-1);
  const change = newest === undefined ? from : changeSchema.parse(newest).change;
  return { jobs: rows, cursor: { journal, change }, more: rows.length === limit };
}
