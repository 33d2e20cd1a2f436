import * as z from 'zod';

/** Why the outbox began to count anew. */
export const generationReasons = ['no-outbox', 'damaged', 'set-back', 'receiver-set-back'] as const;
export type GenerationReason = (typeof generationReasons)[number];

/** Of each report, what its row and its places in the indexes take beside its content. */
export const rowBytes = 256;

/** Version of the tables, kept in SQLite's `user_version`. */
export const schemaVersion = 2;

export const outboxTables = `
  CREATE TABLE outbox (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    generation TEXT NOT NULL,
    reason TEXT NOT NULL,
    begun_at_ms INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL,
    sent_through INTEGER NOT NULL,
    acknowledged_through INTEGER NOT NULL
  ) STRICT;
  CREATE TABLE reports (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    weight TEXT NOT NULL,
    time_ms INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    content BLOB NOT NULL
  ) STRICT;
  CREATE INDEX reports_by_subject ON reports (kind, subject, sequence);
  CREATE INDEX reports_by_weight ON reports (weight, sequence);
  -- What reports take, by weight, so that nobody has to add it up.
  CREATE TABLE sizes (weight TEXT PRIMARY KEY, reports INTEGER NOT NULL, size_bytes INTEGER NOT NULL) STRICT;
  INSERT INTO sizes VALUES ('state', 0, 0), ('progress', 0, 0), ('lasting', 0, 0);
  CREATE TRIGGER report_added AFTER INSERT ON reports BEGIN
    UPDATE sizes SET reports = reports + 1, size_bytes = size_bytes + NEW.size_bytes WHERE weight = NEW.weight;
  END;
  CREATE TRIGGER report_removed AFTER DELETE ON reports BEGIN
    UPDATE sizes SET reports = reports - 1, size_bytes = size_bytes - OLD.size_bytes WHERE weight = OLD.weight;
  END;
  -- What was left out since the outbox was made.
  CREATE TABLE thinned (
    kind TEXT PRIMARY KEY,
    superseded INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    first_lost_ms INTEGER,
    last_lost_ms INTEGER
  ) STRICT;
  -- What the controller was told last about a subject; for as long as it stays so, it is not told again, unless it is not
  -- sure that the controller knows it.
  CREATE TABLE told (
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    seen TEXT NOT NULL,
    is_sure INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (kind, subject)
  ) STRICT;
  -- How far the sources of reports have been read.
  CREATE TABLE cursors (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
`;

/** What makes tables of version 1 those of version 2. */
export const outboxMigration = 'ALTER TABLE told ADD COLUMN is_sure INTEGER NOT NULL DEFAULT 1';

const stateSchema = z
  .object({
    generation: z.uuid(),
    reason: z.enum(generationReasons),
    begun_at_ms: z.number(),
    last_sequence: z.number(),
    sent_through: z.number(),
    acknowledged_through: z.number(),
  })
  .transform((row) => ({
    generation: row.generation,
    reason: row.reason,
    begunAtMs: row.begun_at_ms,
    lastSequence: row.last_sequence,
    sentThrough: row.sent_through,
    acknowledgedThrough: row.acknowledged_through,
  }));

/** Where an outbox stands. */
export type OutboxState = Readonly<z.output<typeof stateSchema>>;

/** The row of `outbox`. */
export function stateFrom(columns: unknown): OutboxState {
  return stateSchema.parse(columns);
}

const thinnedSchema = z
  .object({
    kind: z.string(),
    superseded: z.number(),
    lost: z.number(),
    first_lost_ms: z.number().nullable(),
    last_lost_ms: z.number().nullable(),
  })
  .transform((row) => ({
    kind: row.kind,
    superseded: row.superseded,
    lost: row.lost,
    firstLostMs: row.first_lost_ms,
    lastLostMs: row.last_lost_ms,
  }));

/** A row of `thinned`. */
export function thinnedFrom(columns: unknown): z.output<typeof thinnedSchema> {
  return thinnedSchema.parse(columns);
}
