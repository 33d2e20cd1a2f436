import { type ErrorRecord, errorRecord } from '../../common/errors.ts';
import { newId } from '../../common/ids.ts';
import type { EngineListener } from './engineListener.ts';
import { JobError } from './errors.ts';
import type { JobRow, JobState } from './job.ts';
import { JobRun } from './jobRun.ts';
import type { Journal } from './journal.ts';
import { isOwnerAlive, isSameOwner, type JobOwner, thisOwner } from './owner.ts';
import type { ScheduledJob } from './scheduleRows.ts';
import type { JobDefinition, Settlement } from './step.ts';

/** A job that had to be put in order this often in one run is parked for an operator. */
const settlementsMax = 4;

export interface EngineOptions {
  readonly journal: Journal;
  readonly listener?: EngineListener | undefined;
  /** Called at every named moment of every job, e.g. `backup/before:save`; tests crash the agent there. */
  readonly onPoint?: ((point: string) => void | Promise<void>) | undefined;
}

/** Runs jobs step by step, each intent and each result durable before the next thing happens. */
export class Engine {
  readonly #journal: Journal;
  readonly #listener: EngineListener;
  readonly #onPoint: (point: string) => void | Promise<void>;
  readonly #owner: JobOwner = thisOwner();
  readonly #running = new Set<string>();
  /** Those of them that have begun. */
  readonly #atWork = new Map<string, { readonly canBeLeft: boolean }>();
  readonly #stop = new AbortController();

  constructor(options: EngineOptions) {
    this.#journal = options.journal;
    this.#listener = options.listener ?? {};
    this.#onPoint = options.onPoint ?? (() => undefined);
  }

  /**
   * Takes the machine and writes the job down, before anything is done.
   * @throws JobError MACHINE_BUSY, UNFINISHED_JOB
   */
  create<Facts>(
    definition: JobDefinition<Facts>,
    job: {
      /** Where the plan has named its files after the job already. */
      readonly id?: string;
      readonly machineUuid: string;
      readonly machineName: string;
      readonly state: JobState;
      readonly facts: Facts;
      readonly scheduled?: ScheduledJob | undefined;
    },
  ): JobRow {
    const { id = newId(), machineUuid, machineName, state, facts, scheduled } = job;
    // It is this process's from now on, also while it waits for its turn.
    this.#running.add(id);
    return this.#journal.create({
      id,
      kind: definition.kind,
      machineUuid,
      machineName,
      state,
      record: facts,
      owner: this.#owner,
      scheduled,
    });
  }

  /** Jobs that nobody works on, although they are not at an end: their process died, or gave them up. */
  orphaned(): readonly JobRow[] {
    return this.#journal
      .holding()
      .filter(
        ({ id, owner }) =>
          owner !== null &&
          (!isOwnerAlive(owner) || (isSameOwner(owner, this.#owner) && !this.#running.has(id))),
      );
  }

  /** Runs a job that `create` made to its end. Never throws for a failing job: the row tells. */
  async run<Facts>(definition: JobDefinition<Facts>, jobId: string): Promise<JobRow> {
    const facts = definition.parse(this.#journal.get(jobId).record);
    return this.#drive(definition, jobId, facts, { kind: 'continue', from: firstStep(definition, facts) });
  }

  /**
   * Takes over the job of a dead owner, or a parked one, and brings it to an end.
   * A record that cannot be read parks the job with JOB_RECORD_UNREADABLE.
   * @returns undefined when a living process has the job
   */
  async recover<Facts>(definition: JobDefinition<Facts>, jobId: string): Promise<JobRow | undefined> {
    if (!this.#journal.takeOver(jobId, this.#owner, (id) => this.#running.has(id))) return undefined;
    let facts: Facts;
    try {
      facts = definition.parse(this.#journal.get(jobId).record);
    } catch (cause) {
      return this.#parkUnreadable(jobId, cause);
    }
    return this.#drive(definition, jobId, facts, undefined);
  }

  /** Nobody can go on with a job whose record means nothing to this version: its machine stays taken. */
  #parkUnreadable(jobId: string, cause: unknown): JobRow {
    const error = new JobError('JOB_RECORD_UNREADABLE', `the record of job ${jobId} cannot be read`, {
      cause,
      hint: `was it begun by another version? Bring it to an end with that one; what it did: stillpoint job show ${jobId}`,
    });
    this.#listener.error?.(jobId, error);
    this.#journal.end(jobId, { state: 'failed', error: errorRecord(error), holdsMachine: true });
    return this.#journal.get(jobId);
  }

  /**
   * The process is to end: steps that can be given up are, and their jobs end with AGENT_STOPPED; the others go on until
   * their job has ended, or `canBeLeft` says that the next process can go on with it.
   */
  stop(): void {
    this.#stop.abort();
  }

  /** Aborted by `stop`. */
  get stopSignal(): AbortSignal {
    return this.#stop.signal;
  }

  /** Jobs at work in this process. */
  get atWork(): readonly string[] {
    return [...this.#atWork.keys()];
  }

  /** This very moment is one at which the process may end: every job at work is in order, if the next one goes on. */
  get canBeLeft(): boolean {
    return [...this.#atWork.values()].every((run) => run.canBeLeft);
  }

  /** A job of this process that nobody runs, for what kept it from being begun: the next look takes it over. */
  leave(jobId: string): void {
    this.#running.delete(jobId);
  }

  async #drive<Facts>(
    definition: JobDefinition<Facts>,
    jobId: string,
    initialFacts: Facts,
    start: Settlement | undefined,
  ): Promise<JobRow> {
    const run = new JobRun(definition, jobId, initialFacts, {
      journal: this.#journal,
      listener: this.#listener,
      onPoint: this.#onPoint,
      stop: this.#stop.signal,
    });
    this.#running.add(jobId);
    this.#atWork.set(jobId, run);
    try {
      let next = start ?? (await run.settle(undefined));
      for (let settlements = 0; next.kind === 'continue'; settlements += 1) {
        const failure = await run.stepsFrom(next.from);
        if (failure === undefined) {
          next = { kind: 'end', ...run.outcome() };
        } else {
          next = await run.settle(failure);
          // In order, but it would fail again.
          if (next.kind === 'continue' && settlements >= settlementsMax)
            next = { kind: 'park', error: errorRecord(failure) };
        }
      }
      this.#journal.end(jobId, {
        state: next.kind === 'park' ? 'failed' : next.state,
        error: next.error === undefined ? undefined : withJobId(next.error, jobId),
        holdsMachine: next.kind === 'park',
      });
    } finally {
      run.stopWatching();
      // Should the end not be writable, the job is nobody's: the next look takes it over.
      this.#running.delete(jobId);
      this.#atWork.delete(jobId);
    }
    const row = this.#journal.get(jobId);
    this.#listener.state?.(jobId, row.state);
    return row;
  }
}

/** Modules that know no job write `<id>` into their hints. */
function withJobId(error: ErrorRecord, jobId: string): ErrorRecord {
  return error.hint === undefined ? error : { ...error, hint: error.hint.replaceAll('<id>', jobId) };
}

function firstStep<Facts>(definition: JobDefinition<Facts>, facts: Facts): string {
  const step = definition.steps(facts)[0];
  if (step === undefined) throw new Error(`a ${definition.kind} job has no steps`);
  return step.name;
}
