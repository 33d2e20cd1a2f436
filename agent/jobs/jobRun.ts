import { JoinedSignal } from '../../common/joinedSignal.ts';
import { type ErrorRecord, errorRecord, type StillpointError } from '../../common/errors.ts';
import type { EngineListener } from './engineListener.ts';
import type { JobProgress, JobState } from './job.ts';
import type { Journal } from './journal.ts';
import { PauseControl } from './pauseControl.ts';
import { RateMeter } from './rate.ts';
import type { JobDefinition, Settlement, Step, StepContext } from './step.ts';
import { asStillpointError, cancelled, deadlineExceeded, stopped } from './stepErrors.ts';

/** How often the owner of a job looks whether somebody asked to cancel it. */
const cancelPollMs = 500;
/** How often progress is written for watchers in other processes. */
const progressIntervalMs = 500;

export interface JobRunOptions {
  readonly journal: Journal;
  readonly listener: EngineListener;
  /** Called at every named moment. */
  readonly onPoint: (point: string) => void | Promise<void>;
  /** Aborted when the process is to end. */
  readonly stop: AbortSignal;
}

/** One run of one job: holds the facts, watches for a cancel, publishes progress. */
export class JobRun<Facts> {
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
  /** What was reported last, until watchers in other processes can see it. */
  #unpublished: JobProgress | null = null;
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
    { journal, listener, onPoint, stop }: JobRunOptions,
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
      // Also of a step that reports nothing any more for long: what it has done until then is seen.
      if (this.#unpublished !== null) this.#publishReported(this.#unpublished);
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
    this.#unpublished = null;
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
    const ends = step.cancellable ? [this.#cancel.signal, deadline.signal, halt.signal] : [];
    using joined = new JoinedSignal(ends);
    const { signal } = joined;
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
      this.#unpublished = null;
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
    this.#unpublished = null;
    this.#listener.progress?.(progress);
    this.#attempt(() => this.#journal.publishProgress(this.#jobId, progress));
  }

  #report(reported: JobProgress): void {
    // What was under way tells of its end: a job that is paused stays so for who watches.
    if (this.#pauses.hold.isClosed) return;
    const progress = { ...reported, ...this.#rate.measure(reported) };
    this.#listener.progress?.(progress);
    this.#unpublished = progress;
    if (Date.now() - this.#lastProgressMs >= progressIntervalMs) this.#publishReported(progress);
  }

  #publishReported(progress: JobProgress): void {
    this.#unpublished = null;
    this.#lastProgressMs = Date.now();
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
