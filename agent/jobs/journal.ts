import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type ErrorRecord, isErrno, messageOf } from '../../common/errors.ts';
import { type ChangeCursor, changedJobRows, type ChangedJobs } from './changeRows.ts';
import { version as programVersion } from '../../common/version.ts';
import { JobError } from './errors.ts';
import type { JobKind, JobListing, JobPause, JobProgress, JobRow, JobState, StepRow } from './job.ts';
import {
  jobFrom,
  migrations,
  ownerFrom,
  progressSchema,
  schemaVersion,
  serviceVersionFrom,
  stepFrom,
} from './journalTables.ts';
import { forgetOldJobs } from './oldJobs.ts';
import { isOwnerAlive, isSameOwner, type JobOwner } from './owner.ts';
import { RequestBook } from './requestRows.ts';
import { deletePause, noPause, putPause, putPausedSince, readPause } from './pauseRows.ts';
import {
  linkSchedule,
  putSchedule,
  scheduleFrom,
  type ScheduledJob,
  type ScheduleRow,
} from './scheduleRows.ts';

/** What a job writes on its way to an end, many times over. */
const reserveBytes = 2 * 1024 * 1024;

/** A change that one transaction makes durable. All parts are optional but the job. */
export interface JournalEntry {
  readonly state?: JobState | undefined;
  /** The whole document of facts. */
  readonly record?: unknown;
  /** A step that has ended. */
  readonly ended?: { readonly name: string; readonly status: 'done' | 'failed'; readonly durationMs: number };
  /** A step that is about to act: its intent. */
  readonly begun?: string | undefined;
}

/**
 * The durable record of all jobs of a host: SQLite in WAL mode with `synchronous=FULL`, so that a call that
 * returned survives a power cut. Several processes may have it open (the service and the CLI).
 */
export class Journal implements Disposable {
  /** Requests that must not be carried out twice. */
  readonly requests: RequestBook;
  readonly #db: DatabaseSync;
  readonly #path: string;

  /**
   * Opens the journal and creates it where it is missing.
   * @throws JobError JOURNAL_UNUSABLE
   */
  constructor(path: string, options: { readonly readOnly?: boolean } = {}) {
    this.#path = path;
    try {
      if (!options.readOnly) mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      this.#db = new DatabaseSync(path, { readOnly: options.readOnly ?? false, timeout: 10_000 });
      this.#db.exec('PRAGMA foreign_keys = ON');
      if (options.readOnly) this.#version();
      else {
        this.#migrate();
        this.#keepReserve();
      }
    } catch (error) {
      if (error instanceof JobError) throw error;
      throw new JobError('JOURNAL_UNUSABLE', `the journal ${path} cannot be opened: ${messageOf(error)}`, {
        hint: 'check the directory named by agent.stateDir: its owner, its free space, its file system; a journal that is damaged can be moved away, then doctor shows what its jobs left',
        cause: error,
      });
    }
    this.requests = new RequestBook(this.#db, (work) => this.#transaction(work));
  }

  #migrate(): void {
    this.#db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL');
    this.#transaction(() => {
      const version = this.#version();
      if (version === schemaVersion) return;
      for (const migration of migrations.slice(version)) this.#db.exec(migration);
      this.#db.exec(`PRAGMA user_version = ${schemaVersion}`);
    });
  }

  /** @throws JobError JOURNAL_UNUSABLE when a newer program made it */
  #version(): number {
    const version = Number(this.#db.prepare('PRAGMA user_version').get()?.['user_version'] ?? 0);
    if (version <= schemaVersion) return version;
    throw new JobError(
      'JOURNAL_UNUSABLE',
      `the journal is of version ${version}, this program knows ${schemaVersion}`,
      {
        hint: 'install the newer Stillpoint again',
      },
    );
  }

  #transaction<T>(work: () => T): T {
    return this.#changing(() => {
      this.#db.exec('BEGIN IMMEDIATE');
      try {
        const result = work();
        this.#db.exec('COMMIT');
        return result;
      } catch (error) {
        // SQLite rolls back by itself on some errors (a full disk); the first error is the one to tell.
        if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
        throw error;
      }
    });
  }

  /** Room that a full file system has for what must be written then. Without room for it now, there is none. */
  #keepReserve(): void {
    if (this.#path === ':memory:' || existsSync(this.#reserve)) return;
    try {
      writeFileSync(this.#reserve, Buffer.alloc(reserveBytes, 1), { mode: 0o600 });
    } catch (error) {
      if (!isErrno(error, 'ENOSPC') && !isErrno(error, 'EROFS') && !isErrno(error, 'EDQUOT')) throw error;
      rmSync(this.#reserve, { force: true });
    }
  }

  /** @returns false when there was none left */
  #freeReserve(): boolean {
    if (this.#path === ':memory:' || !existsSync(this.#reserve)) return false;
    try {
      rmSync(this.#reserve);
      return true;
    } catch (error) {
      if (!isErrno(error, 'EROFS')) throw error;
      return false;
    }
  }

  get #reserve(): string {
    return `${this.#path}.reserve`;
  }

  /** @throws JobError JOURNAL_UNUSABLE for what SQLite cannot write, such as on a full disk */
  #changing<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      if (!isErrno(error, 'ERR_SQLITE_ERROR')) throw error;
      // A recovery must be able to begin on a full disk: there may be a machine to bring back.
      if (isOutOfRoom(error) && this.#freeReserve()) return this.#changing(work);
      throw new JobError(
        'JOURNAL_UNUSABLE',
        `the journal ${this.#path} cannot be written: ${messageOf(error)}`,
        {
          hint: `df -h ${dirname(this.#path)}; what was begun is taken up by: stillpoint agent --once`,
          cause: error,
          retryable: true,
        },
      );
    }
  }

  /**
   * Creates a job and takes the machine for it.
   * @param scheduled is written in the same transaction: a run of a schedule is begun with its job, or not at all
   * @throws JobError MACHINE_BUSY, UNFINISHED_JOB
   */
  create(job: {
    readonly id: string;
    readonly kind: JobKind;
    readonly machineUuid: string;
    readonly machineName: string;
    readonly state: JobState;
    readonly record: unknown;
    readonly owner: JobOwner;
    readonly scheduled?: ScheduledJob | undefined;
  }): JobRow {
    this.#transaction(() => {
      const holder = this.holder(job.machineUuid);
      if (holder !== undefined) throw busy(holder);
      const now = Date.now();
      this.#db
        .prepare(
          `INSERT INTO jobs (id, kind, machine_uuid, machine_name, state, record, owner, created_at_ms, updated_at_ms)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        )
        .run(
          job.id,
          job.kind,
          job.machineUuid,
          job.machineName,
          job.state,
          JSON.stringify(job.record),
          JSON.stringify(job.owner),
          now,
          now,
        );
      if (job.scheduled !== undefined) linkSchedule(this.#db, job.id, job.scheduled);
    });
    return this.get(job.id);
  }

  /** Commits a step's end, the next one's intent and the facts, in one durable transaction. */
  write(jobId: string, entry: JournalEntry): void {
    this.#transaction(() => {
      const now = Date.now();
      if (entry.ended !== undefined) {
        this.#db
          .prepare(
            `UPDATE steps SET status = ?, duration_ms = ? WHERE job_id = ? AND name = ? AND status = 'begun'`,
          )
          .run(entry.ended.status, entry.ended.durationMs, jobId, entry.ended.name);
      }
      if (entry.begun !== undefined) {
        this.#db
          .prepare(
            `INSERT INTO steps (job_id, seq, name, status, started_at_ms)
             SELECT ?, COALESCE(MAX(seq), 0) + 1, ?, 'begun', ? FROM steps WHERE job_id = ?`,
          )
          .run(jobId, entry.begun, now, jobId);
      }
      this.#db
        .prepare(
          `UPDATE jobs SET state = COALESCE(?, state), record = COALESCE(?, record), updated_at_ms = ? WHERE id = ?`,
        )
        .run(
          entry.state ?? null,
          entry.record === undefined ? null : JSON.stringify(entry.record),
          now,
          jobId,
        );
    });
  }

  /** Ends a job; with `holdsMachine` it keeps the machine until `retry` or `cancel`. */
  end(
    jobId: string,
    end: {
      readonly state: JobState;
      readonly error?: ErrorRecord | undefined;
      readonly holdsMachine?: boolean;
    },
  ): void {
    const now = Date.now();
    const statement = this.#db.prepare(
      `UPDATE jobs SET state = ?, error = ?, holds_machine = ?, owner = NULL, progress = NULL,
           ${noPause}, updated_at_ms = ?, finished_at_ms = ? WHERE id = ?`,
    );
    const error = end.error === undefined ? null : JSON.stringify(end.error);
    this.#changing(() => statement.run(end.state, error, end.holdsMachine ? 1 : 0, now, now, jobId));
  }

  /**
   * Makes `owner` the owner of an unfinished job whose own owner is dead or gone.
   * @param isRunning tells whether the owner's own process still works on the job: it may have given it up
   * without being able to write that down
   * @returns false when somebody living has it
   */
  takeOver(jobId: string, owner: JobOwner, isRunning: (jobId: string) => boolean = () => true): boolean {
    return this.#transaction(() => {
      const job = this.get(jobId);
      if (!job.holdsMachine) return false;
      if (
        job.owner !== null &&
        isOwnerAlive(job.owner) &&
        !(isSameOwner(job.owner, owner) && !isRunning(jobId))
      )
        return false;
      this.#db
        // What somebody wanted of the process that died must not hold up the recovery of a machine.
        .prepare(
          `UPDATE jobs SET owner = ?, finished_at_ms = NULL, ${noPause}, updated_at_ms = ? WHERE id = ?`,
        )
        .run(JSON.stringify(owner), Date.now(), jobId);
      return true;
    });
  }

  /** Asks the owner of a job to cancel it; the owner looks every half second. */
  requestCancel(jobId: string): void {
    const statement = this.#db.prepare(
      'UPDATE jobs SET cancel_requested = 1, updated_at_ms = ? WHERE id = ?',
    );
    this.#changing(() => statement.run(Date.now(), jobId));
  }

  isCancelRequested(jobId: string): boolean {
    return this.#db.prepare('SELECT cancel_requested AS c FROM jobs WHERE id = ?').get(jobId)?.['c'] === 1;
  }

  /**
   * Asks the owner of a job to hold it; the owner looks every half second.
   * @param untilMs milliseconds since 1970: from then on it goes on by itself
   */
  requestPause(jobId: string, untilMs: number): void {
    this.#changing(() => putPause(this.#db, jobId, untilMs));
  }

  /** Takes the wish for a pause back; the owner looks every half second. */
  endPause(jobId: string): void {
    this.#changing(() => deletePause(this.#db, jobId));
  }

  /** Written by the owner of a job that does what was wanted. @param sinceMs `null`: it is not held back for now */
  notePaused(jobId: string, sinceMs: number | null): void {
    this.#changing(() => putPausedSince(this.#db, jobId, sinceMs));
  }

  /** The pause that somebody wants of a job. */
  pause(jobId: string): JobPause | null {
    return readPause(this.#db, jobId);
  }

  /** Publishes what a watcher in another process may show. Worth nothing after a crash. */
  publishProgress(jobId: string, progress: JobProgress): void {
    this.#db.prepare('UPDATE jobs SET progress = ? WHERE id = ?').run(JSON.stringify(progress), jobId);
  }

  progress(jobId: string): JobProgress | undefined {
    const text = this.#db.prepare('SELECT progress FROM jobs WHERE id = ?').get(jobId)?.['progress'];
    return typeof text === 'string' ? progressSchema.parse(JSON.parse(text)) : undefined;
  }

  /**
   * A job by its id in full, which looks at no other one, or by a unique beginning or end of at least 8 characters.
   * @throws JobError JOB_NOT_FOUND, JOB_AMBIGUOUS
   */
  get(id: string): JobRow {
    return this.find(id) ?? this.get(this.#idLike(id));
  }

  /** A job by its id in full; `undefined` for one that the journal does not know (any more). */
  find(id: string): JobRow | undefined {
    const row = this.#db.prepare('SELECT * FROM jobs WHERE id = ?').get(id);
    return row === undefined ? undefined : jobFrom(row);
  }

  #idLike(part: string): string {
    const like = this.#db.prepare(`SELECT id FROM jobs WHERE id LIKE ? || '%' OR id LIKE '%' || ? LIMIT 2`);
    const [found, other] = /^[0-9a-f-]{8,36}$/.test(part) ? like.all(part, part) : [];
    if (found !== undefined && other === undefined) return String(found['id']);
    const [code, many] =
      found === undefined
        ? (['JOB_NOT_FOUND', 'no'] as const)
        : (['JOB_AMBIGUOUS', 'more than one'] as const);
    throw new JobError(code, `there is ${many} job "${part}"`, { hint: 'stillpoint jobs' });
  }

  /**
   * The newest jobs first, by their ids, which are in the order of their making: no more of the journal is read than is
   * returned, however many jobs it remembers.
   */
  list(listing: JobListing = {}): readonly JobRow[] {
    const [machine, before] = [listing.machine ?? null, listing.before ?? null];
    const rows = this.#db
      .prepare(
        `SELECT * FROM jobs WHERE (? IS NULL OR machine_uuid = ? OR machine_name = ?) AND (? IS NULL OR id < ?)
         ORDER BY id DESC LIMIT ?`,
      )
      .all(machine, machine, machine, before, before, listing.limit ?? 1000);
    return rows.map((row) => jobFrom(row));
  }

  /** How many jobs it remembers. */
  get count(): number {
    return Number(this.#db.prepare('SELECT count(*) AS count FROM jobs').get()?.['count']);
  }

  /**
   * Jobs that have changed (state, error, steps, who owns them) after a cursor, in the order of their last changes.
   * @param after from the first change on unless told, and where it is of another journal
   */
  changedJobs(after: ChangeCursor | undefined, limit: number): ChangedJobs<JobRow> {
    const changed = changedJobRows(this.#db, after, limit);
    return { ...changed, jobs: changed.jobs.map((row) => jobFrom(row)) };
  }

  /**
   * Ids of the newest jobs of a kind in one of these states, so many for each machine; newest first. It looks at no
   * record, so it may be asked often, however many jobs there are.
   */
  newestOfMachines(options: {
    readonly kind: JobKind;
    readonly states: readonly JobState[];
    readonly perMachine: number;
  }): readonly string[] {
    // Ids are in the order of their making.
    const rows = this.#db
      .prepare(
        `SELECT id FROM (
           SELECT id, ROW_NUMBER() OVER (PARTITION BY machine_uuid ORDER BY id DESC) AS place FROM jobs
           WHERE kind = ? AND state IN (SELECT value FROM json_each(?))
         ) WHERE place <= ? ORDER BY id DESC`,
      )
      .all(options.kind, JSON.stringify(options.states), options.perMachine);
    return rows.map((row) => String(row['id']));
  }

  /**
   * Forgets jobs that have ended long ago; see `oldJobs.ts`.
   * @returns how many, and at most `limit`: then there may be more
   * @throws JobError JOURNAL_UNUSABLE
   */
  forgetOld(nowMs: number, limit: number): number {
    return this.#transaction(() => forgetOldJobs(this.#db, nowMs, limit));
  }

  /** Jobs that hold a machine, oldest first. */
  holding(): readonly JobRow[] {
    return this.#db
      .prepare('SELECT * FROM jobs WHERE holds_machine = 1 ORDER BY created_at_ms, id')
      .all()
      .map((row) => jobFrom(row));
  }

  /** Jobs whose owner died in the middle: they wait for recovery. */
  orphaned(): readonly JobRow[] {
    return this.holding().filter((job) => job.owner !== null && !isOwnerAlive(job.owner));
  }

  /** The job that holds a machine. */
  holder(machineUuid: string): JobRow | undefined {
    const row = this.#db
      .prepare('SELECT * FROM jobs WHERE machine_uuid = ? AND holds_machine = 1')
      .get(machineUuid);
    return row === undefined ? undefined : jobFrom(row);
  }

  /** The job that takes the place of another one. */
  replacementOf(jobId: string): string | undefined {
    if (this.#version() < 3) return undefined;
    const id = this.#db.prepare('SELECT id FROM jobs WHERE instead_of = ?').get(jobId)?.['id'];
    return typeof id === 'string' ? id : undefined;
  }

  steps(jobId: string): readonly StepRow[] {
    return this.#db.prepare('SELECT * FROM steps WHERE job_id = ? ORDER BY seq').all(jobId).map(stepFrom);
  }

  /** What is kept about the schedules of all machines. */
  schedules(): readonly ScheduleRow[] {
    if (!this.#knowsSchedules()) return [];
    return this.#db.prepare('SELECT * FROM schedules ORDER BY machine_uuid').all().map(scheduleFrom);
  }

  /** What is kept about the schedule of one machine. */
  schedule(machineUuid: string): ScheduleRow | undefined {
    if (!this.#knowsSchedules()) return undefined;
    const row = this.#db.prepare('SELECT * FROM schedules WHERE machine_uuid = ?').get(machineUuid);
    return row === undefined ? undefined : scheduleFrom(row);
  }

  /** Puts rows in the places of those of their machines, all or none. */
  writeSchedules(rows: readonly ScheduleRow[]): void {
    this.#transaction(() => {
      for (const row of rows) putSchedule(this.#db, row);
    });
  }

  /** Removes what is kept about the schedules of machines. */
  forgetSchedules(machineUuids: readonly string[]): void {
    this.#transaction(() => {
      const statement = this.#db.prepare('DELETE FROM schedules WHERE machine_uuid = ?');
      for (const uuid of machineUuids) statement.run(uuid);
    });
  }

  /**
   * Makes `owner` the service of this host, the only process that acts on schedules.
   * @returns false when another living one is
   */
  claimService(owner: JobOwner): boolean {
    return this.#transaction(() => {
      const present = this.serviceOwner();
      if (present !== undefined && isSameOwner(present, owner)) return true;
      if (present !== undefined && isOwnerAlive(present)) return false;
      this.#db
        .prepare('INSERT OR REPLACE INTO service (only_one, owner) VALUES (1, ?)')
        .run(JSON.stringify({ ...owner, version: programVersion }));
      return true;
    });
  }

  /** The process that last was the service; it need not be alive. */
  serviceOwner(): JobOwner | undefined {
    if (!this.#knowsSchedules()) return undefined;
    const row = this.#db.prepare('SELECT owner FROM service').get();
    return row === undefined ? undefined : ownerFrom(row);
  }

  /** Version of the program that last was the service; `undefined` where it was too old to say so. */
  serviceVersion(): string | undefined {
    if (!this.#knowsSchedules()) return undefined;
    const row = this.#db.prepare('SELECT owner FROM service').get();
    return row === undefined ? undefined : serviceVersionFrom(row);
  }

  /** A journal that was opened read-only stays as an older program has made it. */
  #knowsSchedules(): boolean {
    return this.#version() >= 2;
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }
}

/** SQLITE_IOERR and SQLITE_FULL, in their extended forms too; a lock or a constraint needs no room. */
function isOutOfRoom(error: unknown): boolean {
  const code = error instanceof Error && 'errcode' in error ? Number(error.errcode) & 0xff : 0;
  return code === 10 || code === 13;
}

function busy(holder: JobRow): JobError {
  const what = `job ${holder.id} (${holder.kind}, ${holder.state})`;
  if (holder.owner !== null && isOwnerAlive(holder.owner)) {
    return new JobError('MACHINE_BUSY', `${holder.machineName} is being worked on by ${what}`, {
      hint: `stillpoint job watch ${holder.id}`,
      retryable: true,
    });
  }
  return new JobError('UNFINISHED_JOB', `${holder.machineName} has an unfinished ${what}`, {
    hint: `stillpoint job show ${holder.id}; then stillpoint job retry ${holder.id}, or stillpoint job cancel ${holder.id}`,
  });
}
