import type { EngineListener } from '../jobs/engineListener.ts';
import type { JobProgress } from '../jobs/job.ts';

/** Jobs that are forgotten when there are more; a job that says nothing for so long has ended. */
const jobsMax = 1000;

/** Counts what the jobs of this process have read and written, step by step, from what they report on their way. */
export class JobBytes {
  readonly #totals = new Map<string, number>();
  /** What each job has reported last, and of what. */
  readonly #reports = new Map<string, { readonly what: string; readonly doneBytes: number }>();

  /** To be given to the engine. */
  get listener(): EngineListener {
    return { progress: (progress) => this.#onProgress(progress) };
  }

  /** Bytes since this process has begun, by the name of the step. */
  get totals(): ReadonlyMap<string, number> {
    return this.#totals;
  }

  #onProgress({ jobId, step, detail, doneBytes }: JobProgress): void {
    if (doneBytes === undefined) return;
    const what = `${step} ${detail ?? ''}`;
    const before = this.#reports.get(jobId);
    // A new stage, or one that is begun again, counts from zero.
    const isSame = before?.what === what && doneBytes >= before.doneBytes;
    const newBytes = isSame ? doneBytes - before.doneBytes : doneBytes;
    this.#totals.set(step, (this.#totals.get(step) ?? 0) + newBytes);
    this.#reports.delete(jobId);
    this.#reports.set(jobId, { what, doneBytes });
    const [oldest] = this.#reports.keys();
    if (this.#reports.size > jobsMax && oldest !== undefined) this.#reports.delete(oldest);
  }
}
