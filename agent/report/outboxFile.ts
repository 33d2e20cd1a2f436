import { existsSync, mkdirSync, renameSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import * as z from 'zod';
import { isErrno, messageOf } from '../../common/errors.ts';
import { newId } from '../../common/ids.ts';
import { ReportError } from './errors.ts';
import {
  type GenerationReason,
  outboxMigration,
  outboxTables,
  schemaVersion,
  stateFrom,
} from './outboxTables.ts';

/** Another process has it for so long at the most; a write takes milliseconds. */
const busyMs = 2_000;
/** A log of writes that was longer is cut when it is begun anew. */
const walBytesMax = 4 * 1024 * 1024;

/**
 * Opens the file of an outbox, and makes it where there is none. One that is damaged is renamed to `….damaged`, in the
 * place of an earlier one, and another is made.
 * @param isDamaged it was found damaged by whoever had it open, so it is not asked again
 * @throws ReportError OUTBOX_UNUSABLE
 */
export function openOutboxFile(path: string, isDamaged: boolean): DatabaseSync {
  try {
    return opened(path, isDamaged);
  } catch (error) {
    const told = asReportError(path, error);
    if (told.code !== 'OUTBOX_DAMAGED') throw told;
    return opened(path, true);
  }
}

function opened(path: string, isDamaged: boolean): DatabaseSync {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  if (isDamaged && existsSync(path)) renameSync(path, `${path}.damaged`);
  const db = new DatabaseSync(path, { timeout: busyMs });
  try {
    db.exec(
      `PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = ${walBytesMax}`,
    );
    const version = Number(db.prepare('PRAGMA user_version').get()?.['user_version'] ?? 0);
    if (version > schemaVersion) throw tooNew(path, version);
    if (version === 0) create(db, isDamaged ? 'damaged' : 'no-outbox');
    else if (version < schemaVersion)
      db.exec(`BEGIN IMMEDIATE; ${outboxMigration}; PRAGMA user_version = ${schemaVersion}; COMMIT`);
    requireSound(db, path);
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

function create(db: DatabaseSync, reason: GenerationReason): void {
  db.exec('BEGIN IMMEDIATE');
  db.exec(outboxTables);
  db.prepare('INSERT INTO outbox VALUES (1, ?, ?, ?, 0, 0, 0)').run(newId(), reason, Date.now());
  db.exec(`PRAGMA user_version = ${schemaVersion}; COMMIT`);
}

function requireSound(db: DatabaseSync, path: string): void {
  const said = String(db.prepare('PRAGMA quick_check(1)').get()?.['quick_check']);
  if (said !== 'ok') throw new ReportError('OUTBOX_DAMAGED', `the outbox ${path} is damaged: ${said}`);
  if (db.prepare('SELECT 1 FROM outbox').get() === undefined)
    throw new ReportError('OUTBOX_DAMAGED', `the outbox ${path} is damaged: it does not say where it stands`);
  stateFrom(db.prepare('SELECT * FROM outbox').get());
}

function tooNew(path: string, version: number): ReportError {
  const message = `the outbox ${path} is of version ${version}, this program knows ${schemaVersion}`;
  return new ReportError('OUTBOX_UNUSABLE', message, { hint: 'install the newer Stillpoint again' });
}

/** What SQLite says when a page, or the whole file, is not what it wrote. */
const damagedCodes: ReadonlySet<number> = new Set([11, 26]);

/** An error of SQLite, or of the file system, as one of ours. */
export function asReportError(path: string, error: unknown): ReportError {
  if (error instanceof ReportError) return error;
  const code = error instanceof Error && 'errcode' in error ? Number(error.errcode) & 0xff : 0;
  // What a transaction has written reads back as it was, or something else has written there.
  const isUnreadable = error instanceof z.ZodError || error instanceof SyntaxError;
  if (isUnreadable || (isErrno(error, 'ERR_SQLITE_ERROR') && damagedCodes.has(code)))
    return new ReportError('OUTBOX_DAMAGED', `the outbox ${path} is damaged: ${messageOf(error)}`, {
      cause: error,
    });
  return new ReportError('OUTBOX_UNUSABLE', `the outbox ${path} cannot be used: ${messageOf(error)}`, {
    hint: `df -h ${dirname(path)}; nothing is lost meanwhile that the journal or a storage still says`,
    cause: error,
    retryable: true,
  });
}
