import { type ErrorRecord, errorRecord, StillpointError } from '../../common/errors.ts';
import { newId } from '../../common/ids.ts';
import { JobError } from './errors.ts';
import type { JobProgress, JobRow, JobState } from './job.ts';
import type { Journal } from './journal.ts';
import { PauseControl } from './pauseControl.ts';
import { RateMeter } from './rate.ts';
import { isOwnerAlive, isSameOwner, type JobOwner, thisOwner } from './owner.ts';
import type { ScheduledJob } from './scheduleRows.ts';
import type { JobDefinition, Settlement, Step, StepContext } from './step.ts';

/** How often the owner of a job looks whether somebody asked to cancel it. */
const cancelPollMs = 500;
/** How often progress is written for watchers in other processes. */
const progressIntervalMs = 500;
/** A job that had to be put in order this often in one run is parked for an operator. */
const settlementsMax = 4;

/** What the engine tells the one who started it. */
export interface EngineListener {
  progress?(progress: JobProgress): void;
  state?(jobId: string, state: JobState): void;
  warning?(jobId: string, message: string): void;
  error?(jobId: string, error: unknown): void;
}

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
    const run = new JobRun(
      definition,
      jobId,
      initialFacts,
      this.#journal,
      this.#listener,
      this.#onPoint,
      this.#stop.signal,
    );
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

/** One run of one job: holds the facts, watches for a cancel, publishes progress. */
class JobRun<Facts> {
  readonly #definition: JobDefinition<Facts>;
  readonly #jobId: string;
  readonly #journal: Journal;
  readonly #listener: EngineListener;
  readonly #onPoint: (point: string) => void | Promise<void>;
  readonly #stop: AbortSignal;
  readonly #cancel = new AbortController();
  readonly #cancelTimer: NodeJS.Timeout;
  #facts: Facts;
  #state: JobState;
  #stepName = 'recover';
  #lastProgressMs = 0;
  readonly #pauses: PauseControl;
  #rate = new RateMeter();
  #current: Step<Facts> | undefined;
  /** The step that has ended but whose end is not yet written: it goes into one commit with the next intent. */
  #ended:
    | { readonly name: string; readonly status: 'done' | 'failed'; readonly durationMs: number }
    | undefined;

  constructor(
    definition: JobDefinition<Facts>,
    jobId: string,
    facts: Facts,
    journal: Journal,
    listener: EngineListener,
    onPoint: (point: string) => void | Promise<void>,
    stop: AbortSignal,
  ) {
    this.#stop = stop;
    this.#definition = definition;
    this.#jobId = jobId;
    this.#facts = facts;
    this.#state = journal.get(jobId).state;
    this.#journal = journal;
    this.#listener = listener;
    this.#onPoint = onPoint;
    this.#pauses = this.#pausesOf(journal);
    this.#cancelTimer = setInterval(() => {
      this.#attempt(() => {
        if (journal.isCancelRequested(jobId)) this.#cancel.abort();
      });
      this.#attempt(() => this.#pauses.look());
    }, cancelPollMs);
  }

  /** Between two steps, and while a job is put in order, it cannot. */
  get canBeLeft(): boolean {
    return this.#current?.canBeLeft?.(this.#facts) ?? false;
  }

  stopWatching(): void {
    clearInterval(this.#cancelTimer);
  }

  /** Runs the steps from the named one on; returns what went wrong, if anything did. */
  async stepsFrom(name: string): Promise<StillpointError | undefined> {
    const steps = this.#definition.steps(this.#facts);
    const first = steps.findIndex((step) => step.name === name);
    if (first < 0) throw new Error(`a ${this.#definition.kind} job has no step ${name}`);
    for (const step of steps.slice(first)) {
      try {
        this.#stepName = step.name;
        if (step.pausable !== undefined) await this.#passPause();
        if (step.cancellable && this.#journal.isCancelRequested(this.#jobId)) throw cancelled();
        if (isGivenUpAtStop(step) && this.#stop.aborted) throw stopped();
        await this.#step(step);
      } catch (error) {
        return asStillpointError(error);
      }
    }
    try {
      this.#writeEnd();
    } catch (error) {
      return asStillpointError(error);
    }
    return undefined;
  }

  /** How the job ends when all its steps are done. */
  outcome(): {
    readonly state: 'finished' | 'failed' | 'cancelled';
    readonly error?: ErrorRecord | undefined;
  } {
    return this.#definition.outcome?.(this.#facts) ?? { state: 'finished' };
  }

  /** Puts the world in order; a settle that fails itself leaves the job parked with that error. */
  async settle(cause: StillpointError | undefined): Promise<Settlement> {
    // A journal that cannot be written (a full disk) must not keep the machine from coming back.
    this.#attempt(() => this.#writeEnd());
    if (cause !== undefined) this.#listener.error?.(this.#jobId, cause);
    try {
      const context = this.#recoveryContext();
      return await this.#definition.settle(context, cause);
    } catch (error) {
      this.#listener.error?.(this.#jobId, error);
      return { kind: 'park', error: errorRecord(asStillpointError(error)) };
    }
  }

  async #step(step: Step<Facts>): Promise<void> {
    this.#facts = { ...this.#facts, ...step.intend?.(this.#facts) };
    this.#journal.write(this.#jobId, {
      state: step.state,
      record: this.#facts,
      begun: step.name,
      ...(this.#ended === undefined ? {} : { ended: this.#ended }),
    });
    this.#ended = undefined;
    this.#state = step.state;
    this.#listener.state?.(this.#jobId, step.state);
    const started = performance.now();
    const deadline = new AbortController();
    const timer =
      step.cancellable && step.deadlineMs !== undefined
        ? setTimeout(() => deadline.abort(), step.deadlineMs)
        : undefined;
    const halt = new AbortController();
    const onStop = (): void => halt.abort();
    if (isGivenUpAtStop(step)) this.#stop.addEventListener('abort', onStop);
    const signal = step.cancellable
      ? AbortSignal.any([this.#cancel.signal, deadline.signal, halt.signal])
      : new AbortController().signal;
    this.#current = step;
    // What was given up has yet to bring to an end what is under way, and that may move data.
    signal.addEventListener('abort', () => this.#attempt(() => this.#pauses.allow(false)));
    let status: 'done' | 'failed' = 'failed';
    try {
      this.#attempt(() => this.#pauses.allow(step.pausable === 'within'));
      await this.#point(`before:${step.name}`);
      await step.act(this.#context(step.name, step.state, signal));
      await this.#point(`after:${step.name}`);
      status = 'done';
    } catch (error) {
      if (deadline.signal.aborted) throw deadlineExceeded(step, error);
      if (signal.aborted) throw this.#cancel.signal.aborted ? cancelled(error) : stopped(error);
      throw error;
    } finally {
      clearTimeout(timer);
      this.#attempt(() => this.#pauses.allow(false));
      this.#stop.removeEventListener('abort', onStop);
      this.#current = undefined;
      this.#ended = { name: step.name, status, durationMs: performance.now() - started };
    }
    if (step.reached !== undefined) {
      this.#journal.write(this.#jobId, { state: step.reached, record: this.#facts, ended: this.#ended });
      this.#ended = undefined;
      this.#state = step.reached;
      this.#listener.state?.(this.#jobId, step.reached);
    }
  }

  #writeEnd(): void {
    if (this.#ended !== undefined)
      this.#journal.write(this.#jobId, { record: this.#facts, ended: this.#ended });
    this.#ended = undefined;
  }

  async #point(name: string): Promise<void> {
    await this.#onPoint(`${this.#definition.kind}/${name}`);
  }

  #context(stepName: string, state: JobState, signal: AbortSignal): StepContext<Facts> {
    const facts = (): Facts => this.#facts;
    const isCancelRequested = (): boolean =>
      this.#cancel.signal.aborted || this.#journal.isCancelRequested(this.#jobId);
    return {
      jobId: this.#jobId,
      get facts() {
        return facts();
      },
      get cancelRequested() {
        return isCancelRequested();
      },
      learn: (learned) => {
        this.#facts = { ...this.#facts, ...learned };
      },
      commit: (learned) => {
        this.#facts = { ...this.#facts, ...learned };
        this.#journal.write(this.#jobId, { record: this.#facts });
      },
      signal,
      hold: this.#pauses.hold,
      report: (progress) => this.#report({ jobId: this.#jobId, state, step: stepName, ...progress }),
      warn: (message) => this.#listener.warning?.(this.#jobId, message),
      point: (name) => this.#point(`${stepName}/${name}`),
    };
  }

  /** In recovery the machine comes first: what cannot be written down is known to this process all the same. */
  #recoveryContext(): StepContext<Facts> {
    const context = this.#context('recover', this.#state, new AbortController().signal);
    return Object.defineProperty(context, 'commit', {
      value: (learned: Partial<Facts>) => {
        context.learn(learned);
        this.#attempt(() => this.#journal.write(this.#jobId, { record: this.#facts }));
      },
    });
  }

  /** Does what the job can do without, and tells when it fails. */
  #attempt(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.#listener.error?.(this.#jobId, error);
    }
  }

  /** A pause holds the job before it begins something; a cancel ends the waiting. */
  async #passPause(): Promise<void> {
    this.#attempt(() => this.#pauses.allow(true));
    try {
      await this.#pauses.hold.take(0, this.#cancel.signal);
    } catch (error) {
      this.#attempt(() => this.#pauses.allow(false));
      throw cancelled(error);
    }
  }

  #pausesOf(journal: Journal): PauseControl {
    return new PauseControl(this.#jobId, journal, {
      paused: (sinceMs) => {
        const detail = `since ${new Date(sinceMs).toISOString()}`;
        this.#publish({ jobId: this.#jobId, state: this.#state, step: 'paused', detail });
      },
      resumed: () => {
        // A pause says nothing about the time that is left.
        this.#rate = new RateMeter();
        this.#publish({ jobId: this.#jobId, state: this.#state, step: this.#stepName });
      },
      expired: () => this.#listener.warning?.(this.#jobId, 'its pause is over: nobody resumed it in time'),
    });
  }

  #publish(progress: JobProgress): void {
    this.#listener.progress?.(progress);
    this.#attempt(() => this.#journal.publishProgress(this.#jobId, progress));
  }

  #report(reported: JobProgress): void {
    // What was under way tells of its end: a job that is paused stays so for who watches.
    if (this.#pauses.hold.isClosed) return;
    const progress = { ...reported, ...this.#rate.measure(reported) };
    this.#listener.progress?.(progress);
    const now = Date.now();
    if (now - this.#lastProgressMs < progressIntervalMs) return;
    this.#lastProgressMs = now;
    this.#attempt(() => this.#journal.publishProgress(this.#jobId, progress));
  }
}

/** What can be given up, and would have to be done again by the next process. */
function isGivenUpAtStop({
  cancellable,
  canBeLeft,
}: Pick<Step<never>, 'cancellable' | 'canBeLeft'>): boolean {
  return cancellable && canBeLeft === undefined;
}

function stopped(cause?: unknown): JobError {
  return new JobError('AGENT_STOPPED', 'the service was stopped while it worked on this job', {
    cause,
    retryable: true,
    hint: 'a schedule begins it again by itself; otherwise start it again',
  });
}

function cancelled(cause?: unknown): JobError {
  return new JobError('CANCELLED', 'the job was cancelled', { cause });
}

function deadlineExceeded(
  step: { readonly name: string; readonly deadlineMs?: number | undefined },
  cause: unknown,
): JobError {
  const seconds = Math.round((step.deadlineMs ?? 0) / 1000);
  return new JobError('STEP_DEADLINE_EXCEEDED', `the step "${step.name}" took longer than its ${seconds} s`, {
    cause,
    retryable: true,
    hint: 'raise the deadline in the policy, or find out what is slow, then: stillpoint job retry <id>',
  });
}

/** Anything thrown, as an error with a code: what is not ours is a fault of the program or of the system. */
export function asStillpointError(error: unknown): StillpointError {
  if (error instanceof StillpointError) return error;
  return new UnexpectedError(error);
}

/** A failure that no module foresaw; its text and code are the system's. */
class UnexpectedError extends StillpointError<'INTERNAL_ERROR'> {
  constructor(cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), {
      code: 'INTERNAL_ERROR',
      cause,
      hint: 'this is a fault in Stillpoint or an unforeseen answer of the system; the log has the details',
    });
  }
}
