import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import * as z from 'zod';
import { GenerationReason, type ReportHello, Report } from '../proto/generated/stillpoint/v1/report.ts';
import { messageOf } from '../common/errors.ts';
import { ReceiverError } from './receiverError.ts';

const schemaVersion = 1;

const tables = `
  CREATE TABLE hosts (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    -- The newest generation of its outbox.
    generation TEXT NOT NULL
  ) STRICT;
  CREATE TABLE generations (
    host_id TEXT NOT NULL REFERENCES hosts (id),
    generation TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- Everything up to this sequence number has arrived, or will never.
    received_through INTEGER NOT NULL,
    PRIMARY KEY (host_id, generation)
  ) STRICT;
  CREATE TABLE reports (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    host_id TEXT NOT NULL REFERENCES hosts (id),
    id TEXT NOT NULL,
    generation TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    kind TEXT NOT NULL,
    received_at_ms INTEGER NOT NULL,
    content BLOB NOT NULL,
    UNIQUE (host_id, id)
  ) STRICT;
  -- What was lost on its way, as far as it is known.
  CREATE TABLE gaps (
    gap INTEGER PRIMARY KEY AUTOINCREMENT,
    host_id TEXT NOT NULL REFERENCES hosts (id),
    generation TEXT NOT NULL,
    after_sequence INTEGER NOT NULL,
    -- NULL: nobody knows how far.
    through_sequence INTEGER,
    reason TEXT NOT NULL,
    noted_at_ms INTEGER NOT NULL
  ) STRICT;
`;

/** Something that a host has told. */
export interface StoredReport {
  /** In the order of their arrival, over all hosts. */
  readonly arrival: number;
  readonly host: string;
  readonly generation: string;
  readonly receivedAtMs: number;
  readonly report: Report;
}

/** Reports that a host had, and that will never arrive. */
export interface Gap {
  readonly host: string;
  readonly generation: string;
  readonly afterSequence: number;
  /** null: nobody knows how far. */
  readonly throughSequence: number | null;
  /** `new-generation`: the host has lost its outbox. `receiver-set-back`: this store has lost what it had acknowledged, or another one had. */
  readonly reason: 'new-generation' | 'receiver-set-back';
}

/** What became of a piece of a stream. */
export interface Taken {
  /** Everything of the generation up to this number is stored. */
  readonly receivedThrough: number;
  readonly stored: readonly StoredReport[];
  readonly gaps: readonly Gap[];
}

const generationRow = z.object({ received_through: z.number() });
const reportRow = z.object({
  arrival: z.number(),
  host_id: z.string(),
  generation: z.string(),
  sequence: z.number(),
  received_at_ms: z.number(),
  content: z.instanceof(Uint8Array),
});
const gapRow = z.object({
  host_id: z.string(),
  generation: z.string(),
  after_sequence: z.number(),
  through_sequence: z.number().nullable(),
  reason: z.enum(['new-generation', 'receiver-set-back']),
});

/**
 * The reports of all hosts: SQLite in WAL mode with `synchronous=FULL`, so what a call has stored survives a power cut.
 * All calls throw ReceiverError REPORT_STORE_UNUSABLE.
 */
export class ReportStore implements Disposable {
  readonly #db: DatabaseSync;
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
    this.#db = this.#working(() => {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      return new DatabaseSync(path, { timeout: 10_000 });
    });
    this.#working(() => this.#db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL'));
    this.#transaction(() => this.#migrate());
  }

  #migrate(): void {
    const version = Number(this.#db.prepare('PRAGMA user_version').get()?.['user_version'] ?? 0);
    if (version > schemaVersion)
      throw new ReceiverError(
        'REPORT_STORE_UNUSABLE',
        `${this.#path} is of version ${version}, this program knows ${schemaVersion}`,
        { hint: 'install the newer Stillpoint again' },
      );
    if (version === 0) this.#db.exec(`${tables}; PRAGMA user_version = ${schemaVersion}`);
  }

  /**
   * Takes note that a host is there, and of the generation of its outbox.
   * @returns how far its reports have arrived, and what is lost now that it counts anew
   */
  begin(hello: ReportHello): Omit<Taken, 'stored'> {
    const { hostId, hostName, generation, generationReason } = hello;
    const gaps: Gap[] = [];
    let receivedThrough = 0;
    this.#transaction(() => {
      const host = this.#db.prepare('SELECT generation FROM hosts WHERE id = ?').get(hostId);
      const before = host === undefined ? undefined : String(host['generation']);
      if (before === undefined)
        this.#db.prepare('INSERT INTO hosts VALUES (?, ?, ?)').run(hostId, hostName, generation);
      const known = this.#receivedThrough(hostId, generation);
      receivedThrough = known ?? 0;
      this.#db.prepare('UPDATE hosts SET name = ? WHERE id = ?').run(hostName, hostId);
      if (known !== undefined) return;
      this.#db.prepare('UPDATE hosts SET generation = ? WHERE id = ?').run(generation, hostId);
      this.#db
        .prepare('INSERT INTO generations VALUES (?, ?, ?, 0)')
        .run(hostId, generation, String(generationReason));
      if (before === undefined) return;
      const afterSequence = this.#receivedThrough(hostId, before) ?? 0;
      const about = { host: hostId, generation: before, afterSequence, throughSequence: null };
      const isOurs = generationReason === GenerationReason.GENERATION_REASON_RECEIVER_SET_BACK;
      gaps.push(this.#noteGap({ ...about, reason: isOurs ? 'receiver-set-back' : 'new-generation' }));
    });
    return { receivedThrough, gaps };
  }

  /** Stores the next reports of a stream, all or none. One that is there already, by its id, is not stored again. */
  add(host: string, generation: string, reports: readonly Report[]): Taken {
    const stored: StoredReport[] = [];
    const gaps: Gap[] = [];
    let receivedThrough = 0;
    this.#transaction(() => {
      receivedThrough = this.#receivedThrough(host, generation) ?? 0;
      for (const report of reports) {
        const sequence = Number(report.sequence);
        const previous = Number(report.previousSequence);
        if (sequence <= receivedThrough) continue;
        if (previous > receivedThrough) {
          const about = { host, generation, afterSequence: receivedThrough };
          gaps.push(this.#noteGap({ ...about, throughSequence: previous, reason: 'receiver-set-back' }));
        }
        receivedThrough = sequence;
        const one = this.#insert(host, generation, report);
        if (one !== undefined) stored.push(one);
      }
      this.#db
        .prepare('UPDATE generations SET received_through = ? WHERE host_id = ? AND generation = ?')
        .run(receivedThrough, host, generation);
    });
    return { receivedThrough, stored, gaps };
  }

  /** All reports after an arrival, in the order of their arrival. */
  *reports(afterArrival = 0): Generator<StoredReport> {
    const rows = this.#working(() =>
      this.#db.prepare('SELECT * FROM reports WHERE arrival > ? ORDER BY arrival').iterate(afterArrival),
    );
    for (const row of rows) {
      const {
        arrival,
        host_id: host,
        generation,
        received_at_ms: receivedAtMs,
        content,
      } = reportRow.parse(row);
      yield { arrival, host, generation, receivedAtMs, report: Report.decode(content) };
    }
  }

  /** Everything that is known to be lost. */
  gaps(): readonly Gap[] {
    const rows = this.#working(() => this.#db.prepare('SELECT * FROM gaps ORDER BY gap').all());
    return rows.map((row) => {
      const { host_id: host, generation, after_sequence, through_sequence, reason } = gapRow.parse(row);
      return { host, generation, afterSequence: after_sequence, throughSequence: through_sequence, reason };
    });
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }

  #receivedThrough(host: string, generation: string): number | undefined {
    const row = this.#db
      .prepare('SELECT received_through FROM generations WHERE host_id = ? AND generation = ?')
      .get(host, generation);
    return row === undefined ? undefined : generationRow.parse(row).received_through;
  }

  #insert(host: string, generation: string, report: Report): StoredReport | undefined {
    const receivedAtMs = Date.now();
    const kind = report.body?.$case ?? 'unknown';
    const { changes, lastInsertRowid } = this.#db
      .prepare(
        `INSERT INTO reports (host_id, id, generation, sequence, kind, received_at_ms, content)
         VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (host_id, id) DO NOTHING`,
      )
      .run(host, report.id, generation, report.sequence, kind, receivedAtMs, Report.encode(report).finish());
    if (changes === 0) return undefined;
    return { arrival: Number(lastInsertRowid), host, generation, receivedAtMs, report };
  }

  #noteGap(gap: Gap): Gap {
    const { host, generation, afterSequence, throughSequence, reason } = gap;
    this.#db
      .prepare(
        `INSERT INTO gaps (host_id, generation, after_sequence, through_sequence, reason, noted_at_ms)
         VALUES (?, ?, ?, ?, ?, ?)`,
      )
      .run(host, generation, afterSequence, throughSequence, reason, Date.now());
    return gap;
  }

  #transaction(work: () => void): void {
    this.#working(() => {
      this.#db.exec('BEGIN IMMEDIATE');
      try {
        work();
        this.#db.exec('COMMIT');
      } catch (error) {
        if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
        throw error;
      }
    });
  }

  #working<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      if (error instanceof ReceiverError) throw error;
      const message = `the reports in ${this.#path} cannot be used: ${messageOf(error)}`;
      throw new ReceiverError('REPORT_STORE_UNUSABLE', message, {
        hint: `df -h ${dirname(this.#path)}`,
        cause: error,
        retryable: true,
      });
    }
  }
}
