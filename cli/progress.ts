import type { EngineListener } from '../agent/jobs/engineListener.ts';
import type { JobProgress, JobState } from '../agent/jobs/job.ts';
import { formatDuration } from '../common/time.ts';
import { formatBytes } from '../common/units.ts';
import { styled, type Text } from './output.ts';
import type { Terminal } from './terminal.ts';

/** A terminal is drawn anew at most this often. */
const drawIntervalMs = 100;
/** Below this a rate says nothing yet. */
const rateAfterMs = 1000;

/** What a running job is for the eye. */
interface Watched {
  readonly machine: string;
  state: JobState | undefined;
  progress: JobProgress | undefined;
  readonly meter: RateMeter;
}

/** Bytes per second of a stage, from what is reported on the way. */
export class RateMeter {
  #stage = '';
  #startedMs = 0;
  #startBytes = 0;

  /** Adds rate and remaining time to a report that has none. @param nowMs monotonic */
  measure(progress: JobProgress, nowMs: number): JobProgress {
    const { doneBytes, totalBytes } = progress;
    if (doneBytes === undefined || progress.bytesPerSecond !== undefined) return progress;
    const stage = `${progress.step} ${progress.detail ?? ''}`;
    if (stage !== this.#stage || doneBytes < this.#startBytes) {
      this.#stage = stage;
      this.#startedMs = nowMs;
      this.#startBytes = doneBytes;
    }
    const elapsedMs = nowMs - this.#startedMs;
    if (elapsedMs < rateAfterMs) return progress;
    const bytesPerSecond = ((doneBytes - this.#startBytes) / elapsedMs) * 1000;
    const leftBytes = Math.max((totalBytes ?? doneBytes) - doneBytes, 0);
    return {
      ...progress,
      bytesPerSecond,
      ...(bytesPerSecond > 0 ? { etaSeconds: leftBytes / bytesPerSecond } : {}),
    };
  }
}

/** Stage, bytes, rate and remaining time in words. */
export function describeProgress(progress: JobProgress): string {
  const { step, detail, doneBytes, totalBytes, bytesPerSecond, etaSeconds } = progress;
  const parts = [detail === undefined ? step : `${step} ${detail}`];
  if (doneBytes !== undefined) {
    parts.push(
      totalBytes === undefined
        ? formatBytes(doneBytes)
        : `${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`,
    );
  }
  if (bytesPerSecond !== undefined) parts.push(`${formatBytes(bytesPerSecond)}/s`);
  if (etaSeconds !== undefined) parts.push(`${formatDuration(etaSeconds * 1000)} left`);
  return parts.join(', ');
}

/**
 * Progress of jobs on stderr: on a terminal one line for each machine, drawn in place; elsewhere one line for
 * each change of state.
 */
export class ProgressView {
  readonly #terminal: Terminal;
  readonly #jobs = new Map<string, Watched>();
  #lastDrawMs = 0;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  /** Says whose job it is; before that nothing of the job is shown. */
  name(jobId: string, machine: string): void {
    this.#jobs.set(jobId, { machine, state: undefined, progress: undefined, meter: new RateMeter() });
  }

  /** The job is over: its line goes. */
  done(jobId: string): void {
    this.#jobs.delete(jobId);
    this.#draw();
  }

  /** Takes the lines off the terminal. */
  end(): void {
    this.#jobs.clear();
    this.#terminal.live([]);
  }

  listener(): EngineListener {
    return {
      state: (jobId, state) => this.#onState(jobId, state),
      progress: (progress) => this.#onProgress(progress),
      warning: (jobId, message) => {
        const machine = this.#jobs.get(jobId)?.machine;
        this.#terminal.warning(machine === undefined ? message : `${machine}: ${message}`);
      },
    };
  }

  #onState(jobId: string, state: JobState): void {
    const job = this.#jobs.get(jobId);
    if (job === undefined || job.state === state) return;
    job.state = state;
    job.progress = undefined;
    if (this.#terminal.isLive) this.#draw();
    else this.#terminal.remark(`${job.machine}: ${state}`);
  }

  #onProgress(progress: JobProgress): void {
    const job = this.#jobs.get(progress.jobId);
    if (job === undefined) return;
    const nowMs = performance.now();
    job.progress = job.meter.measure(progress, nowMs);
    if (nowMs - this.#lastDrawMs >= drawIntervalMs) this.#draw();
  }

  #draw(): void {
    this.#lastDrawMs = performance.now();
    const lines = [...this.#jobs.values()].map(({ machine, state, progress }): readonly Text[] => {
      const stage = state === undefined ? 'waiting' : state;
      return [
        styled('bold', machine),
        `  ${stage}${progress === undefined ? '' : `  ${describeProgress(progress)}`}`,
      ];
    });
    this.#terminal.live(lines);
  }
}
