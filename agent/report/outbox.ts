import { statSync } from 'node:fs';
import type { DatabaseSync } from 'node:sqlite';
import * as z from 'zod';
import type { Report } from '../../proto/generated/stillpoint/v1/report.ts';
import { isErrno } from '../../common/errors.ts';
import { newId } from '../../common/ids.ts';
import type { ReportError } from './errors.ts';
import { asReportError, openOutboxFile } from './outboxFile.ts';
import { type GenerationReason, type OutboxState, rowBytes, stateFrom } from './outboxTables.ts';
import { decodeReport, encodeReport, type NewReport, thinnedReport } from './report.ts';
import { countSuperseded, pendingBytes, thin, thinnedCounts } from './thinning.ts';

/** After thinning so much of the bound is taken: it is not done anew with each report. */
const goalPart = 15 / 16;
/** What lasts may take so much before those who can wait do so: nothing that lasts is to be thinned out. */
const roomPart = 3 / 4;

/** What the controller has been told about a subject; `seen: null` forgets it. */
export interface Told {
  readonly kind: string;
  readonly subject: string;
  readonly seen: string | null;
}

/** What the outbox remembers about a subject. */
export interface ToldSubject {
  /** As the controller was told last. */
  readonly seen: string;
  /** False: the controller may know something else, or nothing, so it is told again. */
  readonly isSure: boolean;
}

/** What one transaction adds. */
export interface OutboxEntry {
  readonly reports: readonly NewReport[];
  readonly told?: readonly Told[] | undefined;
  /** How far the source of the reports was read for them. */
  readonly cursor?: { readonly name: string; readonly value: unknown } | undefined;
}

/** A report that waits, ready to be sent. */
export interface PendingReport {
  readonly report: Report;
  readonly sequence: number;
  readonly sizeBytes: number;
}

/** How much waits. */
export interface OutboxBacklog {
  readonly reports: number;
  readonly sizeBytes: number;
  /** When the oldest one was noted; null: nothing waits. */
  readonly oldestMs: number | null;
}

const textRow = z.object({ text: z.string() }).transform(({ text }) => text);
const backlogRow = z.object({ reports: z.number(), sizeBytes: z.number() });
const pendingRow = z.object({ sequence: z.number(), content: z.instanceof(Uint8Array) });

/**
 * The reports of a host that its controller has not acknowledged yet, in their order. A SQLite file in WAL mode with
 * `synchronous=FULL`: what a call has noted survives a power cut. All calls throw ReportError OUTBOX_UNUSABLE for what
 * cannot be read or written now, and OUTBOX_DAMAGED once the file is not what was written; nothing has changed then.
 */
export class Outbox implements Disposable {
  readonly #db: DatabaseSync;
  readonly #path: string;
  readonly #inode: number;
  readonly #maxBytes: number;
  readonly #now: () => number;
  #isDamaged = false;

  /**
   * Opens the outbox, and makes it where there is none, or where it is damaged.
   * @param options.maxBytes what its reports may take; the file is somewhat larger
   * @param options.isDamaged the file was found damaged: it is set aside
   * @param options.now the clock of the host
   * @throws ReportError OUTBOX_UNUSABLE
   */
  constructor(
    path: string,
    options: {
      readonly maxBytes: number;
      readonly isDamaged?: boolean | undefined;
      readonly now?: (() => number) | undefined;
    },
  ) {
    this.#path = path;
    this.#maxBytes = options.maxBytes;
    this.#now = options.now ?? Date.now;
    this.#db = openOutboxFile(path, options.isDamaged ?? false);
    this.#inode = statSync(path).ino;
  }

  /** The file was seen to be damaged. */
  get isDamaged(): boolean {
    return this.#isDamaged;
  }

  /** False once somebody has removed the file, or put another in its place: what is written is lost then. */
  get isInPlace(): boolean {
    try {
      return statSync(this.#path).ino === this.#inode;
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return false;
      throw asReportError(this.#path, error);
    }
  }

  get state(): OutboxState {
    return this.#working(() => this.#state());
  }

  /** How much waits to be acknowledged. */
  get backlog(): OutboxBacklog {
    return this.#working(() => {
      const sum = 'SELECT SUM(reports) AS reports, SUM(size_bytes) AS sizeBytes FROM sizes';
      const oldest = this.#db.prepare('SELECT time_ms FROM reports ORDER BY sequence LIMIT 1').get();
      const oldestMs = oldest === undefined ? null : Number(oldest['time_ms']);
      return { ...backlogRow.parse(this.#db.prepare(sum).get()), oldestMs };
    });
  }

  /** Whether there is room for what can wait where it comes from. */
  get hasRoom(): boolean {
    return this.#working(() => {
      const row = this.#db.prepare(`SELECT size_bytes FROM sizes WHERE weight = 'lasting'`).get();
      return Number(row?.['size_bytes']) < this.#maxBytes * roomPart;
    });
  }

  /** What the controller was told about subjects of a kind, by subject. */
  told(kind: string): ReadonlyMap<string, ToldSubject> {
    return this.#working(() => {
      const rows = this.#db.prepare('SELECT subject, seen, is_sure FROM told WHERE kind = ?').all(kind);
      return new Map(
        rows.map(({ subject, seen, is_sure }) => [
          String(subject),
          { seen: String(seen), isSure: is_sure === 1 },
        ]),
      );
    });
  }

  /** How far a source was read; `undefined`: not at all. */
  cursor(name: string): unknown {
    return this.#working(() => {
      const row = this.#db.prepare('SELECT value AS text FROM cursors WHERE name = ?').get(name);
      return row === undefined ? undefined : JSON.parse(textRow.parse(row));
    });
  }

  /** Adds reports in their order, all or none, and makes room by the rule where they do not fit. */
  note({ reports, told = [], cursor }: OutboxEntry): void {
    this.#transaction(() => {
      for (const report of reports) this.#add(report);
      for (const { kind, subject, seen } of told) this.#tell(kind, subject, seen);
      if (cursor !== undefined)
        this.#db
          .prepare('INSERT OR REPLACE INTO cursors (name, value) VALUES (?, ?)')
          .run(cursor.name, JSON.stringify(cursor.value));
      this.#makeRoom();
    });
  }

  /**
   * The next reports after a sequence number, ready to be sent.
   * @param limits at most so many, and so many bytes but for the first one
   */
  pending(
    after: number,
    limits: { readonly count: number; readonly bytes: number },
  ): readonly PendingReport[] {
    return this.#working(() => {
      const { acknowledgedThrough } = this.#state();
      const before = this.#db.prepare('SELECT MAX(sequence) AS sequence FROM reports WHERE sequence <= ?');
      let previous = Number(before.get(after)?.['sequence'] ?? acknowledgedThrough);
      const next = this.#db.prepare(
        'SELECT sequence, content FROM reports WHERE sequence > ? ORDER BY sequence LIMIT ?',
      );
      const found: PendingReport[] = [];
      let bytes = 0;
      for (const row of next.iterate(after, limits.count)) {
        const { sequence, content } = pendingRow.parse(row);
        bytes += content.length;
        if (found.length > 0 && bytes > limits.bytes) break;
        const report = decodeReport(content, sequence, previous);
        found.push({ report, sequence, sizeBytes: content.length });
        previous = sequence;
      }
      return found;
    });
  }

  /** Notes, before it is done, that reports are sent: from now on they are not thinned out, for they may arrive. */
  markSent(throughSequence: number): void {
    this.#transaction(() => {
      this.#db.prepare('UPDATE outbox SET sent_through = MAX(sent_through, ?)').run(throughSequence);
    });
  }

  /** Forgets what the controller has. */
  acknowledge(throughSequence: number): void {
    this.#transaction(() => {
      this.#db.prepare('DELETE FROM reports WHERE sequence <= ?').run(throughSequence);
      this.#db
        .prepare('UPDATE outbox SET acknowledged_through = MAX(acknowledged_through, ?)')
        .run(throughSequence);
    });
  }

  /**
   * Begins to count anew, because the outbox and the controller do not know of the same past. What waits keeps its ids
   * and its order. Everything that there is, and what goes before the next look, is told again: either the controller
   * does not know it, or it knows later things that are not so.
   */
  beginGeneration(reason: GenerationReason): void {
    this.#transaction(() => {
      this.#db.exec('UPDATE told SET is_sure = 0; DELETE FROM cursors');
      const rows = this.#db.prepare('SELECT sequence FROM reports ORDER BY sequence').all();
      const move = this.#db.prepare('UPDATE reports SET sequence = ? WHERE sequence = ?');
      // Each goes down or stays, the lowest first: none meets another one.
      for (const [index, { sequence = null }] of rows.entries()) move.run(index + 1, sequence);
      this.#db
        .prepare(
          `UPDATE outbox SET generation = ?, reason = ?, begun_at_ms = ?,
             last_sequence = ?, sent_through = 0, acknowledged_through = 0`,
        )
        .run(newId(), reason, this.#now(), rows.length);
    });
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }

  #state(): OutboxState {
    return stateFrom(this.#db.prepare('SELECT * FROM outbox').get());
  }

  #add({ subject, weight, body }: NewReport): void {
    const sequence = this.#state().lastSequence + 1;
    const id = newId();
    const timeMs = this.#now();
    const content = encodeReport({ id, timeMs, body });
    this.#db
      .prepare('INSERT INTO reports VALUES (?, ?, ?, ?, ?, ?, ?, ?)')
      .run(sequence, id, body.$case, subject, weight, timeMs, content.length + rowBytes, content);
    this.#db.prepare('UPDATE outbox SET last_sequence = ?').run(sequence);
  }

  #tell(kind: string, subject: string, seen: string | null): void {
    if (seen === null) this.#db.prepare('DELETE FROM told WHERE kind = ? AND subject = ?').run(kind, subject);
    else this.#db.prepare('INSERT OR REPLACE INTO told VALUES (?, ?, ?, 1)').run(kind, subject, seen);
  }

  #makeRoom(): void {
    if (pendingBytes(this.#db) <= this.#maxBytes) return;
    const { sentThrough } = this.#state();
    if (!thin(this.#db, { goalBytes: this.#maxBytes * goalPart, sentThrough })) return;
    // The newest one says all: one that has not left yet is not needed any more.
    const { changes } = this.#db
      .prepare(`DELETE FROM reports WHERE kind = 'thinned' AND sequence > ?`)
      .run(sentThrough);
    if (changes > 0) countSuperseded(this.#db, 'thinned', Number(changes));
    this.#add({
      subject: '',
      weight: 'lasting',
      body: { $case: 'thinned', value: thinnedReport(thinnedCounts(this.#db)) },
    });
  }

  #transaction(work: () => void): void {
    this.#working(() => {
      this.#db.exec('BEGIN IMMEDIATE');
      try {
        work();
        this.#db.exec('COMMIT');
      } catch (error) {
        // SQLite rolls back by itself on some errors (a full disk); the first error is the one to tell.
        if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
        throw error;
      }
    });
  }

  /** @throws ReportError for what SQLite, or a row that is not as it was written, says */
  #working<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      const told: ReportError = asReportError(this.#path, error);
      if (told.code === 'OUTBOX_DAMAGED') this.#isDamaged = true;
      throw told;
    }
  }
}
