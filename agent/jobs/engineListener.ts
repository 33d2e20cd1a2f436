import type { JobProgress, JobState } from './job.ts';

/** What the engine tells the one who started it. */
export interface EngineListener {
  progress?(progress: JobProgress): void;
  state?(jobId: string, state: JobState): void;
  warning?(jobId: string, message: string): void;
  error?(jobId: string, error: unknown): void;
}
