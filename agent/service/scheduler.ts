import { errorRecord } from '../../common/errors.ts';
import type { Logger } from '../../common/log.ts';
import type { Agent } from '../agent.ts';
import { isMigratedAway } from '../hypervisor/migration.ts';
import { JobError } from '../jobs/errors.ts';
import type { JobRow } from '../jobs/job.ts';
import { thisOwner } from '../jobs/owner.ts';
import { ClockWatch, type ClockReading } from '../schedule/clockWatch.ts';
import { decideSchedule, type ScheduleDecision } from '../schedule/decide.ts';
import { DueQueue } from '../schedule/queue.ts';
import { begun, ended, type RunOutcome, skipped } from '../schedule/runState.ts';
import { copyAfter } from './copyAfter.ts';
import { pruneAfter } from './pruneAfter.ts';
import { type LastWord, ScheduleBook, type ScheduleEntry } from './scheduleBook.ts';
import { ScheduleLog } from './scheduleLog.ts';
import { type ScheduledMachine, Timetables } from './timetables.ts';

/** Jobs of other processes end without a word: so often is looked whether one has. */
const recheckMs = 10_000;
/** After a run that has got no job: never at once, whatever the reason. */
const afterNoJobMs = 1000;
/** After what cannot be done now, such as writing to a full disk. */
const againMs = 60_000;

/** What the journal has of thousands of machines takes a while to read: not with each look at them. */
const takeEveryMs = 600_000;

/** What a backup fails with where there is no room for it. */
const storageIsFull: ReadonlySet<string> = new Set([
  'NOT_ENOUGH_DISK_SPACE',
  'NO_SPACE',
  'QUOTA_EXCEEDED',
  'STORAGE_FULL',
  'STORAGE_GROUP_UNUSABLE',
]);

/** What a backup fails with whose machine is not on this host any more. */
const hasLeft: ReadonlySet<string> = new Set(['MACHINE_LEFT', 'MACHINE_NOT_FOUND']);

/** The clocks of the host. */
export const hostClock = (): ClockReading => ({ wallMs: Date.now(), monotonicMs: performance.now() });

export interface SchedulerOptions {
  readonly agent: Agent;
  readonly log: Logger;
  /** Those of the host unless told. */
  readonly clock?: () => ClockReading;
  /** Called when `lookAtDue` is worth calling before the time that it has said. */
  readonly onChange?: () => void;
}

type Begin = Extract<ScheduleDecision, { kind: 'begin' }>;
/** `waited`: it was due before, when as many were run as may be. */
type WaitedBegin = Begin & { readonly waited: boolean };

/**
 * Begins the backups that the schedules of the policies ask for, one per machine and not more at a time than
 * `agent.maxParallelMachines`. What is remembered is in the journal alone, and is read for each look: a run is begun
 * in the transaction that creates its job, and how it ended is read from that job, whoever brought it to its end.
 */
export class Scheduler {
  readonly #agent: Agent;
  readonly #clock: () => ClockReading;
  readonly #onChange: () => void;
  readonly #logger: Logger;
  readonly #log: ScheduleLog;
  readonly #book: ScheduleBook;
  #timetables: Timetables;
  readonly #watch: ClockWatch;
  readonly #machines = new Map<string, ScheduledMachine>();
  /** What the present policies say of machines, by UUID. */
  readonly #known = new Map<string, { readonly name: string; readonly machine: ScheduledMachine | null }>();
  readonly #queue = new DueQueue();
  /** What this process does for machines, by UUID. */
  readonly #running = new Map<string, Promise<void>>();
  /** Those of them whose job is not written down yet. */
  readonly #creating = new Set<string>();
  /** Due, but as many as may be run already; in their order. */
  readonly #waiting = new Set<string>();
  readonly #ending = new AbortController();
  /** When all machines were compared with what the journal has of them. */
  #takenAtMs = Number.NEGATIVE_INFINITY;
  #following: Promise<void> = Promise.resolve();
  #isService = true;
  /** The policies have changed since the machines were looked at. */
  #isStale = false;

  constructor({ agent, log, clock = hostClock, onChange = () => undefined }: SchedulerOptions) {
    this.#agent = agent;
    this.#clock = clock;
    this.#onChange = onChange;
    this.#logger = log;
    this.#log = new ScheduleLog(log);
    this.#book = new ScheduleBook(agent.parts.journal);
    this.#timetables = new Timetables(agent.parts);
    this.#watch = new ClockWatch(clock());
  }

  /** Whether any machine has a schedule, or one may have. */
  get isNeeded(): boolean {
    return this.#timetables.any || this.#machines.size > 0;
  }

  /** The policies are others by now: nothing begins before `refresh` has looked at all machines anew. */
  follow(): void {
    this.#timetables = new Timetables(this.#agent.parts);
    this.#known.clear();
    this.#isStale = true;
  }

  /**
   * Looks which machines are on this host. Does nothing while another living process is the service.
   * @throws HypervisorError; ConfigError NO_STORAGE; JobError JOURNAL_UNUSABLE: what was known stays
   */
  async refresh(): Promise<void> {
    const { hypervisor, journal } = this.#agent.parts;
    const isService = journal.claimService(thisOwner());
    if (!isService && this.#isService) this.#log.otherService();
    this.#isService = isService;
    if (!isService) return;
    // One that was migrated away belongs to the host that it runs on, although its definition may have stayed here.
    const machines = (await hypervisor.machines()).filter(({ status }) => !isMigratedAway(status));
    const scheduled: ScheduledMachine[] = [];
    for (const about of machines) {
      const { uuid } = about;
      // What is started to verify a backup is no machine of this host.
      if (!this.#machines.has(uuid) && journal.holder(uuid)?.kind === 'verify') continue;
      const machine = this.#scheduled(about);
      if (machine !== null) scheduled.push(machine);
    }
    const { wallMs } = this.#clock();
    if (!this.#isTaken(scheduled, wallMs)) {
      this.#book.take(scheduled, new Set(machines.map(({ uuid }) => uuid)), wallMs);
      this.#takenAtMs = wallMs;
    }
    this.#isStale = false;
    this.#replace(scheduled, wallMs);
  }

  /** Nothing has changed about the machines since they were written down, and that is not long ago. */
  #isTaken(scheduled: readonly ScheduledMachine[], nowMs: number): boolean {
    return (
      Math.abs(nowMs - this.#takenAtMs) < takeEveryMs &&
      scheduled.length === this.#machines.size &&
      scheduled.every((machine) => this.#machines.get(machine.uuid) === machine)
    );
  }

  /** A machine as the policies have it now; null where it has no schedule. */
  #scheduled({ uuid, name }: { readonly uuid: string; readonly name: string }): ScheduledMachine | null {
    const present = this.#machines.get(uuid);
    // Its job is being written down, together with what the timetable says by which it was begun.
    if (present !== undefined && this.#creating.has(uuid)) return present;
    const known = this.#known.get(uuid);
    if (known?.name === name) return known.machine;
    const machine = this.#timetables.of({ uuid, name });
    this.#known.set(uuid, { name, machine });
    return machine;
  }

  #replace(scheduled: readonly ScheduledMachine[], nowMs: number): void {
    const present = new Set(scheduled.map(({ uuid }) => uuid));
    for (const machine of this.#machines.values()) if (!present.has(machine.uuid)) this.#drop(machine);
    for (const uuid of this.#known.keys()) if (!present.has(uuid)) this.#known.delete(uuid);
    for (const machine of scheduled) {
      if (this.#machines.get(machine.uuid) === machine) continue;
      this.#machines.set(machine.uuid, machine);
      this.#queue.set(machine.uuid, nowMs);
    }
  }

  #drop(machine: ScheduledMachine): void {
    this.#machines.delete(machine.uuid);
    this.#queue.delete(machine.uuid);
    this.#waiting.delete(machine.uuid);
    this.#log.gone(machine);
    this.#endLeft(machine);
  }

  /**
   * The run of a machine that is not looked after here any more has its last word as soon as its job has ended: it is
   * not tried again on this host, whoever has the machine now.
   */
  #endLeftRun(machine: ScheduledMachine, nowMs: number): void {
    const entry = this.#book.entry(machine);
    const isOpen = entry?.state.run?.endedMs === null;
    const isHeld = this.#agent.parts.journal.holder(machine.uuid) !== undefined;
    if (entry === undefined || !isOpen || isHeld || this.#running.has(machine.uuid)) return;
    const job = this.#jobOf(entry);
    const outcome = job?.state === 'finished' ? 'succeeded' : 'left-host';
    this.#writeEnd(machine, entry, { outcome, error: job?.error ?? null, nowMs });
    if (outcome === 'succeeded') this.#follow(machine, { copies: true });
  }

  /** Does what is due now; returns after how many milliseconds to call it again, at the latest. */
  lookAtDue(): number {
    if (!this.#isService) return againMs;
    const reading = this.#clock();
    const byMs = this.#watch.look(reading);
    if (byMs !== 0) {
      this.#log.clockSet(byMs);
      for (const uuid of this.#machines.keys()) this.#queue.set(uuid, reading.wallMs);
    }
    for (const uuid of this.#queue.takeDue(reading.wallMs)) this.#lookAt(uuid);
    return this.#queue.sleepMs(this.#clock().wallMs);
  }

  /** When a machine is due next; null: none is, as far as is known. */
  nextDueMs(): number | null {
    return this.#log.earliestMs();
  }

  /** Begins nothing any more, and ends when all that was begun has. */
  async end(): Promise<void> {
    this.#ending.abort();
    await this.settled();
  }

  /** Resolves when nothing that was begun goes on. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running.values());
    await this.#following;
  }

  #lookAt(uuid: string): void {
    const machine = this.#machines.get(uuid);
    if (machine === undefined || this.#isStale || this.#creating.has(uuid)) return;
    const { wallMs: nowMs } = this.#clock();
    try {
      while (this.#act(machine, nowMs));
    } catch (error) {
      this.#log.failed('the schedule of a machine could not be looked at', error, machine);
      this.#queue.set(uuid, nowMs + againMs);
    }
  }

  /** Decides once, and acts on it. @returns whether to decide again, now that something is done */
  #act(machine: ScheduledMachine, nowMs: number): boolean {
    const entry = this.#book.entry(machine);
    // Removed by somebody else: the next look at the host's machines makes it anew.
    if (entry === undefined) {
      this.#takenAtMs = Number.NEGATIVE_INFINITY;
      return false;
    }
    const holder = this.#agent.parts.journal.holder(machine.uuid);
    const unfinished = holder !== undefined || this.#running.has(machine.uuid);
    const { state, decision } = decideSchedule(machine.table, entry.state, { nowMs, unfinished });
    if (state !== entry.state) this.#book.write(machine, { ...entry, state }, nowMs);
    const present = { ...entry, state };
    if (decision.kind === 'begin') {
      this.#beginOrWait(machine, present, decision);
      return false;
    }
    this.#waiting.delete(machine.uuid);
    if (decision.kind === 'skip') {
      this.#skip(machine, present, { slotMs: decision.slotMs, nowMs, jobId: holder?.id ?? null });
      return true;
    }
    if (decision.kind === 'ask') {
      this.#settle(machine, present, nowMs);
      return true;
    }
    if (decision.kind === 'never') this.#log.next(machine, null);
    else this.#wait(machine, decision, unfinished ? nowMs + recheckMs : Number.POSITIVE_INFINITY);
    return false;
  }

  #wait(
    machine: ScheduledMachine,
    { untilMs, why }: Extract<ScheduleDecision, { kind: 'wait' }>,
    atMostMs: number,
  ): void {
    this.#queue.set(machine.uuid, Math.min(untilMs, atMostMs));
    if (why !== 'unfinished') this.#log.next(machine, untilMs);
  }

  #skip(
    machine: ScheduledMachine,
    entry: ScheduleEntry,
    {
      slotMs,
      nowMs,
      jobId,
    }: { readonly slotMs: number; readonly nowMs: number; readonly jobId: string | null },
  ): void {
    const lastWord = { kind: 'skipped', slotMs, atMs: nowMs, jobId, error: null } as const;
    this.#book.write(machine, { ...entry, state: skipped(entry.state, slotMs, nowMs), lastWord }, nowMs);
    this.#log.skipped(machine, slotMs, jobId);
  }

  /** The run has ended: its job says how. */
  #settle(machine: ScheduledMachine, entry: ScheduleEntry, nowMs: number): void {
    const job = this.#jobOf(entry);
    const error = job?.error ?? null;
    const outcome = job === undefined ? 'failed' : outcomeOf(job);
    this.#writeEnd(machine, entry, { outcome, error, nowMs });
    if (outcome === 'succeeded') this.#follow(machine, { copies: true });
    // What the rules let go may be the room that the next one needs.
    else if (error !== null && storageIsFull.has(error.code)) this.#follow(machine, { copies: false });
  }

  #writeEnd(
    machine: ScheduledMachine,
    { state, jobId }: ScheduleEntry,
    end: Pick<LastWord, 'error'> & { readonly outcome: RunOutcome; readonly nowMs: number },
  ): void {
    const { outcome, error, nowMs } = end;
    const { state: over, word } = ended(machine.table, state, outcome, nowMs);
    const slotMs = state.run?.slotMs ?? nowMs;
    if (word === null) throw new Error(`the run of ${machine.name} has ended before`);
    const lastWord: LastWord = { kind: word.kind, slotMs, atMs: nowMs, jobId, error };
    this.#book.write(machine, { state: over, jobId, lastWord }, nowMs);
    this.#log.ended(machine, word, lastWord);
  }

  /** The job of the newest run; `undefined` where the journal does not know it any more. */
  #jobOf({ jobId }: ScheduleEntry): JobRow | undefined {
    return jobId === null ? undefined : this.#agent.parts.journal.find(jobId);
  }

  /**
   * What a policy asks for after a backup: copies, then pruning. One machine after the other: both read and write in
   * storages that all of them share.
   */
  #follow(machine: ScheduledMachine, options: { readonly copies: boolean }): void {
    this.#following = this.#copyAndPrune(this.#following, machine, options);
  }

  async #copyAndPrune(
    before: Promise<void>,
    machine: ScheduledMachine,
    { copies }: { readonly copies: boolean },
  ): Promise<void> {
    await before;
    const how = { log: this.#logger, signal: this.#ending.signal };
    if (copies) await copyAfter(this.#agent, machine, how);
    if (machine.prunes && !how.signal.aborted) await pruneAfter(this.#agent, machine, how);
  }

  #beginOrWait(machine: ScheduledMachine, entry: ScheduleEntry, decision: Begin): void {
    const { uuid } = machine;
    // What a stop has given up is due again at once: for the next process.
    if (this.#ending.signal.aborted || this.#agent.parts.engine.stopSignal.aborted) return;
    if (this.#running.size >= this.#agent.parts.config.agent.maxParallelMachines) {
      if (!this.#waiting.has(uuid)) this.#log.waits(machine, decision.slotMs);
      this.#waiting.add(uuid);
      return;
    }
    const waited = this.#waiting.delete(uuid);
    this.#creating.add(uuid);
    this.#running.set(uuid, this.#work(machine, entry, { ...decision, waited }));
  }

  /** Never rejects. */
  async #work(machine: ScheduledMachine, entry: ScheduleEntry, decision: WaitedBegin): Promise<void> {
    const { uuid } = machine;
    try {
      const isBegun = await this.#run(machine, entry, decision);
      this.#queue.set(uuid, this.#clock().wallMs + (isBegun ? 0 : afterNoJobMs));
    } catch (error) {
      this.#log.failed('a scheduled backup was left as it was', error, machine);
      this.#queue.set(uuid, this.#clock().wallMs + againMs);
    }
    this.#running.delete(uuid);
    this.#creating.delete(uuid);
    if (!this.#machines.has(uuid)) this.#endLeft(machine);
    // In their order: one that comes now must not pass those that wait.
    for (const next of this.#waiting) this.#lookAt(next);
    this.lookAtDue();
    this.#onChange();
  }

  /** Never throws. */
  #endLeft(machine: ScheduledMachine): void {
    try {
      this.#endLeftRun(machine, this.#clock().wallMs);
    } catch (error) {
      this.#log.failed('the end of a scheduled backup could not be written down', error, machine);
    }
  }

  /** @returns whether there was a job */
  async #run(machine: ScheduledMachine, entry: ScheduleEntry, decision: WaitedBegin): Promise<boolean> {
    const job = await this.#create(machine, entry, decision);
    if (job === undefined) return false;
    this.#creating.delete(machine.uuid);
    this.#log.begun(machine, decision, job.id);
    // Slots that come while it runs are skipped when they come.
    this.#queue.set(machine.uuid, this.#clock().wallMs);
    this.#onChange();
    const row = await this.#agent.run(job);
    if (row.holdsMachine) this.#log.parked(machine, row.id);
    return true;
  }

  /**
   * Writes a run and its job down, in one transaction.
   * @returns undefined where there is no job: the run has failed, or was not begun because there is something to look at
   */
  async #create(
    machine: ScheduledMachine,
    entry: ScheduleEntry,
    decision: WaitedBegin,
  ): Promise<JobRow | undefined> {
    const { wallMs: nowMs } = this.#clock();
    const state = begun(machine.table, entry.state, decision, nowMs);
    try {
      const schedule = this.#book.row(machine, { ...entry, state }, nowMs);
      return await this.#agent.createBackup({ machine: machine.uuid }, { schedule });
    } catch (error) {
      if (error instanceof JobError) {
        // Somebody was faster: the slot is skipped with the next look.
        if (error.code === 'MACHINE_BUSY' || error.code === 'UNFINISHED_JOB') return undefined;
        throw error;
      }
      const record = errorRecord(error);
      if (hasLeft.has(record.code)) {
        this.#drop(machine);
        return undefined;
      }
      const outcome = record.retryable ? 'failed' : 'failed-for-good';
      this.#writeEnd(machine, { ...entry, state, jobId: null }, { outcome, error: record, nowMs });
      return undefined;
    }
  }
}

function outcomeOf({ state, error }: JobRow): RunOutcome {
  if (state === 'finished') return 'succeeded';
  if (state === 'cancelled') return 'cancelled';
  if (error !== null && hasLeft.has(error.code)) return 'left-host';
  if (error?.code === 'AGENT_STOPPED') return 'stopped';
  return error?.retryable === false ? 'failed-for-good' : 'failed';
}
