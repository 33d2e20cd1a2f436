import { newId } from '../../common/ids.ts';
import type { EngineListener } from '../jobs/engineListener.ts';
import type { JobProgress, JobState } from '../jobs/job.ts';
import { Wake } from './wake.ts';

const endStates: ReadonlySet<JobState> = new Set(['finished', 'failed', 'cancelled']);
/** Warnings are kept for so many jobs, the newest. */
const warnedJobsMax = 1000;
/** So many warnings are kept of a job; the facts of a backup have all of them. */
const warningsMax = 200;

/** What the jobs of this process say while they run, for whoever watches: the journal alone would be late. */
export class JobSignals {
  /** Names this run of the service: what it says here is counted from its start. */
  readonly run = newId();
  readonly #progress = new Map<string, JobProgress>();
  readonly #warnings = new Map<string, string[]>();
  readonly #watchers = new Map<string, Set<Wake>>();
  readonly #others = new Set<() => void>();

  /** What the engine of this process is to tell. */
  listener(): EngineListener {
    return {
      progress: (progress) => {
        this.#progress.set(progress.jobId, progress);
        this.#wake(progress.jobId);
      },
      state: (jobId, state) => {
        if (endStates.has(state)) this.#progress.delete(jobId);
        this.changed(jobId);
      },
      warning: (jobId, message) => {
        this.#warn(jobId, message);
        this.#wake(jobId);
      },
    };
  }

  #warn(jobId: string, message: string): void {
    const warnings = this.#warnings.get(jobId) ?? [];
    if (warnings.length < warningsMax) warnings.push(message);
    this.#warnings.set(jobId, warnings);
    const [oldest] = this.#warnings.keys();
    if (this.#warnings.size > warnedJobsMax && oldest !== undefined) this.#warnings.delete(oldest);
  }

  /** Tells watchers to look at a job again. */
  changed(jobId: string): void {
    this.#wake(jobId);
    for (const other of this.#others) other();
  }

  #wake(jobId: string): void {
    for (const wake of this.#watchers.get(jobId) ?? []) wake.up();
  }

  /** The newest progress of a job of this process. */
  progressOf(jobId: string): JobProgress | undefined {
    return this.#progress.get(jobId);
  }

  /** What a job of this process has warned of, in order. */
  warningsOf(jobId: string): readonly string[] {
    return this.#warnings.get(jobId) ?? [];
  }

  /** Wakes whenever there may be something new about a job of this process, until it is disposed. */
  watch(jobId: string): { readonly wake: Wake } & Disposable {
    const wake = new Wake();
    const watchers = this.#watchers.get(jobId) ?? new Set();
    this.#watchers.set(jobId, watchers.add(wake));
    const end = (): void => {
      watchers.delete(wake);
      if (watchers.size === 0) this.#watchers.delete(jobId);
    };
    return { wake, [Symbol.dispose]: end };
  }

  /** Calls `listener` when a job of this process has another state, until it is disposed. */
  onChange(listener: () => void): Disposable {
    this.#others.add(listener);
    return { [Symbol.dispose]: () => void this.#others.delete(listener) };
  }
}
