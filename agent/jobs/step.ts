import type { ErrorRecord, StillpointError } from '../../common/errors.ts';
import type { Hold } from '../../common/hold.ts';
import type { JobKind, JobProgress, JobState } from './job.ts';

/** What a step is given. `Facts` is the job kind's document in the journal. */
export interface StepContext<Facts> {
  readonly jobId: string;
  /** The facts as they are; changed by `learn` only. */
  readonly facts: Facts;
  /** Adds facts; they become durable with the end of the step. */
  learn(facts: Partial<Facts>): void;
  /** Adds facts and makes them durable before it returns. */
  commit(facts: Partial<Facts>): void;
  /** Aborted by a cancel or the step's deadline; never in a step that is not `cancellable`. */
  readonly signal: AbortSignal;
  report(progress: Omit<JobProgress, 'jobId' | 'state' | 'step'>): void;
  /** A warning for the operator: shown, logged and kept in the journal's facts by the caller if it matters. */
  warn(message: string): void;
  /** Closed while somebody wants the job to be paused; a step that is pausable `within` moves its data through it. */
  readonly hold: Hold;
  /** Somebody asked for the job to be cancelled. */
  readonly cancelRequested: boolean;
  /** Names a moment at which a test may kill the process. */
  point(name: string): Promise<void>;
}

/** A durable stage of a job. Must be idempotent: it may be started again after a crash at any moment. */
export interface Step<Facts> {
  readonly name: string;
  /** State of the job while the step runs, and after it (default: the same). */
  readonly state: JobState;
  readonly reached?: JobState | undefined;
  /** A cancel may end it in the middle. */
  readonly cancellable: boolean;
  /**
   * Asked of a step at work when the process is to end: whether it may end now, and the next one goes on with the job.
   * Without it a stop gives a cancellable step up, and waits for every other.
   */
  canBeLeft?(facts: Facts): boolean;
  /** Bound of a cancellable step; others are bounded by the calls they make. */
  readonly deadlineMs?: number | undefined;
  /**
   * Whether a pause may hold the job before the step acts, or `within` it, too, at `context.hold`. Never where the vCPUs
   * stand still, or something of the machine waits for the end of the step.
   */
  readonly pausable?: 'before' | 'within' | undefined;
  /** Facts that recovery needs, committed together with the intent before `act` is called. */
  intend?(facts: Facts): Partial<Facts>;
  act(context: StepContext<Facts>): Promise<void>;
}

/** How a job goes on after its `settle` has put the world in order. */
export type Settlement =
  /** Go on with this step and those after it. */
  | { readonly kind: 'continue'; readonly from: string }
  /** Nothing of the job is left. */
  | {
      readonly kind: 'end';
      readonly state: 'failed' | 'cancelled' | 'finished';
      readonly error?: ErrorRecord | undefined;
    }
  /** The machine is safe, but work is left that needs `retry` or `cancel` (and perhaps an operator). */
  | { readonly kind: 'park'; readonly error: ErrorRecord };

/** A kind of job: its steps, and the one way back to order after a failure, a cancel or a crash. */
export interface JobDefinition<Facts> {
  readonly kind: JobKind;
  /** Checks a document read from the journal. */
  parse(record: unknown): Facts;
  steps(facts: Facts): readonly Step<Facts>[];
  /** How a job whose steps are all done ends; `finished` unless told. */
  outcome?(facts: Facts): {
    readonly state: 'finished' | 'failed' | 'cancelled';
    readonly error?: ErrorRecord | undefined;
  };
  /**
   * Called when a step failed or was cancelled (`cause`), and when the job of a dead agent, or a parked one,
   * is taken over (`cause` undefined). Looks at the world first, then completes or rolls back.
   */
  settle(context: StepContext<Facts>, cause: StillpointError | undefined): Promise<Settlement>;
}
