import type { DatabaseSync } from 'node:sqlite';
import * as z from 'zod';
import type { ErrorRecord } from '../../common/errors.ts';

/** A request that must not be carried out twice, as who asked for it names it. */
export interface RequestKey {
  /** Who asked: keys of others are other keys. */
  readonly scope: string;
  readonly key: string;
}

/** One piece of what a request asks for, such as the backup of one machine. */
export interface RequestPart extends RequestKey {
  readonly part: string;
}

/** What became of one piece of a request: a job, or why there is none. */
export interface RequestOutcome {
  readonly part: string;
  readonly jobId: string | null;
  readonly error: ErrorRecord | null;
}

/** What the journal says to a request: `known` also for one that was cut short, whose outcomes are not all there. */
export type RequestAnswer =
  | { readonly kind: 'new' }
  | { readonly kind: 'known'; readonly outcomes: readonly RequestOutcome[] }
  /** The key came with another request before. */
  | { readonly kind: 'other' }
  /** There is no room for one more until the oldest has been kept for its day. */
  | { readonly kind: 'full' };

/** Since version 3 of the journal. */
export const requestTables = `
  CREATE TABLE requests (
    scope TEXT NOT NULL,
    request_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (scope, request_key)
  ) STRICT;
  CREATE TABLE request_outcomes (
    scope TEXT NOT NULL,
    request_key TEXT NOT NULL,
    part TEXT NOT NULL,
    job_id TEXT,
    error TEXT,
    PRIMARY KEY (scope, request_key, part),
    FOREIGN KEY (scope, request_key) REFERENCES requests (scope, request_key) ON DELETE CASCADE
  ) STRICT;
  -- The job that this one takes the place of.
  ALTER TABLE jobs ADD COLUMN instead_of TEXT;
  CREATE INDEX jobs_instead_of ON jobs (instead_of) WHERE instead_of IS NOT NULL;
`;

const keptMs = 36 * 3_600_000;
const requestsMax = 10_000;
const outcomesMax = 100_000;

const outcomeSchema = z.object({
  part: z.string(),
  job_id: z.string().nullable(),
  error: z
    .string()
    .transform((text): unknown => JSON.parse(text))
    .pipe(
      z.object({
        code: z.string(),
        message: z.string(),
        hint: z.string().optional(),
        retryable: z.boolean(),
      }),
    )
    .nullable(),
});

/** What is remembered of requests, so that one which is repeated is carried out once: for a day and a half, and bounded. */
export class RequestBook {
  readonly #db: DatabaseSync;
  readonly #transaction: <T>(work: () => T) => T;
  readonly #requestsMax: number;

  /** @param limits for tests */
  constructor(
    db: DatabaseSync,
    transaction: <T>(work: () => T) => T,
    limits: { readonly requestsMax?: number } = {},
  ) {
    this.#db = db;
    this.#transaction = transaction;
    this.#requestsMax = limits.requestsMax ?? requestsMax;
  }

  /**
   * Writes a request down, unless it is known.
   * @param fingerprint the same for the same request only
   * @throws JobError JOURNAL_UNUSABLE
   */
  open({ scope, key }: RequestKey, fingerprint: string, nowMs: number = Date.now()): RequestAnswer {
    return this.#transaction(() => {
      const known = this.#db
        .prepare('SELECT fingerprint FROM requests WHERE scope = ? AND request_key = ?')
        .get(scope, key);
      if (known !== undefined) {
        if (known['fingerprint'] !== fingerprint) return { kind: 'other' };
        return { kind: 'known', outcomes: this.#outcomes({ scope, key }) };
      }
      this.#db.prepare('DELETE FROM requests WHERE created_at_ms < ?').run(nowMs - keptMs);
      if (this.#count('requests') >= this.#requestsMax || this.#count('request_outcomes') >= outcomesMax)
        return { kind: 'full' };
      this.#db
        .prepare('INSERT INTO requests (scope, request_key, fingerprint, created_at_ms) VALUES (?, ?, ?, ?)')
        .run(scope, key, fingerprint, nowMs);
      return { kind: 'new' };
    });
  }

  #count(table: 'requests' | 'request_outcomes'): number {
    return Number(this.#db.prepare(`SELECT COUNT(*) AS n FROM ${table}`).get()?.['n'] ?? 0);
  }

  #outcomes({ scope, key }: RequestKey): readonly RequestOutcome[] {
    const rows = this.#db
      .prepare('SELECT part, job_id, error FROM request_outcomes WHERE scope = ? AND request_key = ?')
      .all(scope, key);
    return rows.map((columns) => {
      const { part, job_id: jobId, error } = outcomeSchema.parse(columns);
      return { part, jobId, error };
    });
  }

  /** Writes down that there is no job for a piece of a request. @throws JobError JOURNAL_UNUSABLE */
  refuse(part: RequestPart, error: ErrorRecord): void {
    this.#transaction(() => putOutcome(this.#db, part, { jobId: null, error: JSON.stringify(error) }));
  }

  /** Writes down the job that was there before, which a piece of a request goes on with. @throws JobError JOURNAL_UNUSABLE */
  assign(part: RequestPart, jobId: string): void {
    this.#transaction(() => linkRequest(this.#db, jobId, part));
  }
}

/** Writes down, in the transaction that creates a job, which piece of a request it is for. */
export function linkRequest(db: DatabaseSync, jobId: string, part: RequestPart): void {
  putOutcome(db, part, { jobId, error: null });
}

function putOutcome(
  db: DatabaseSync,
  { scope, key, part }: RequestPart,
  { jobId, error }: { readonly jobId: string | null; readonly error: string | null },
): void {
  db.prepare(
    'INSERT INTO request_outcomes (scope, request_key, part, job_id, error) VALUES (?, ?, ?, ?, ?)',
  ).run(scope, key, part, jobId, error);
}
