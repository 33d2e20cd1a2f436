import { setTimeout as sleep } from 'node:timers/promises';
import type { JobPause, JobProgress, JobRow } from '../../agent/jobs/job.ts';
import type { Journal } from '../../agent/jobs/journal.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { connectToService } from '../api/connect.ts';
import { type ExitCode, exitCodeOfJob } from '../exitCodes.ts';
import { JobFailure } from '../jobFailure.ts';
import { holdOf, timeOf } from '../jobView.ts';
import { ProgressView, RateMeter } from '../progress.ts';
import { reading } from '../session.ts';

/** The owner of a job writes its progress as often. */
const lookIntervalMs = 500;

/** `stillpoint job watch ID`; ends as the job does. */
export const jobWatch: RunVerb = async (cli, [id = '']) => {
  using client = await connectToService(cli);
  if (client !== null) {
    const { watchByService } = await import('./serviceJobs.ts');
    return await watchByService(cli, client, id);
  }
  return watchByJournal(cli, id);
};

const watchByJournal = (cli: Cli, id: string): Promise<ExitCode> =>
  reading(cli, async ({ agent }) => {
    const { journal } = agent.parts;
    const job = await follow(cli, journal, journal.get(id));
    const code = exitCodeOfJob(job);
    // A job that was left with work is told of by the session.
    if (code !== 0 && code !== 9) cli.terminal.error(new JobFailure(job), job.machineName);
    else if (code === 0 && !cli.terminal.json) cli.terminal.out(`${job.machineName}: ${job.kind} finished`);
    return code;
  });

/** Shows a job until nobody works on it any more. */
async function follow(cli: Cli, journal: Journal, first: JobRow): Promise<JobRow> {
  const view = new ProgressView(cli.terminal);
  const listener = view.listener();
  const meter = new RateMeter();
  view.name(first.id, first.machineName);
  let told = '';
  try {
    for (;;) {
      const job = journal.get(first.id);
      const running = holdOf(journal, job) === 'running';
      const found = running ? journal.progress(job.id) : undefined;
      const progress =
        found === undefined || found.state !== job.state
          ? undefined
          : meter.measure(found, performance.now());
      if (cli.terminal.json) told = tellJson(cli, job, progress, told);
      else {
        listener.state?.(job.id, job.state);
        if (progress !== undefined) listener.progress?.(progress);
      }
      if (!running) return job;
      await sleep(lookIntervalMs);
    }
  } finally {
    view.end();
  }
}

/** One JSON line for each change. @returns what was told last */
export function tellJson(
  cli: Cli,
  job: Pick<JobRow, 'id' | 'machineName' | 'state' | 'error'> & {
    readonly pause: Pick<JobPause, 'sinceMs'> | null;
  },
  progress: JobProgress | undefined,
  told: string,
): string {
  const { id: jobId, machineName: machine, state, error, pause } = job;
  const { step, detail, doneBytes, totalBytes, bytesPerSecond, etaSeconds } = progress ?? {};
  const line = {
    jobId,
    machine,
    state,
    step,
    detail,
    doneBytes,
    totalBytes,
    bytesPerSecond,
    etaSeconds,
    pausedSince: pause?.sinceMs == null ? undefined : timeOf(pause.sinceMs),
    error: error ?? undefined,
  };
  const text = JSON.stringify(line);
  if (text !== told) cli.terminal.object(line);
  return text;
}
