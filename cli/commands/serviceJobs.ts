import type { JobProgress } from '../../agent/jobs/job.ts';
import { type Job, JobHold } from '../../proto/generated/stillpoint/v1/agent.ts';
import type { AgentClient } from '../api/agentClient.ts';
import { followJob } from '../api/followJob.ts';
import { jobJsonOf, jobOf, type ToldJob } from '../api/fromMessages.ts';
import type { Cli } from '../cli.ts';
import { type ExitCode, exitCodeOfJob } from '../exitCodes.ts';
import { JobFailure } from '../jobFailure.ts';
import { ProgressView } from '../progress.ts';
import { tellJson } from './jobWatch.ts';

/** `stillpoint job watch ID`, by what the service tells. */
export async function watchByService(cli: Cli, client: AgentClient, id: string): Promise<ExitCode> {
  const { job: message } = await client.job(id);
  const jobId = message?.id ?? id;
  let told = '';
  const job = cli.terminal.json
    ? await followJob(client, jobId, {
        job: (now) => void (told = tellJson(cli, now, undefined, told)),
        progress: (progress, now) => void (told = tellJson(cli, now, progress, told)),
      })
    : await showJob(cli, client, jobId);
  const code = exitCodeOfJob(job);
  if (code !== 0) cli.terminal.error(new JobFailure(job), job.machineName);
  else if (!cli.terminal.json) cli.terminal.out(`${job.machineName}: ${job.kind} finished`);
  return code;
}

/** Draws a job until nobody works on it any more. */
async function showJob(cli: Cli, client: AgentClient, id: string): Promise<ToldJob> {
  const view = new ProgressView(cli.terminal);
  const listener = view.listener();
  let isNamed = false;
  try {
    return await followJob(client, id, {
      job: ({ machineName, state }) => {
        if (!isNamed) view.name(id, machineName);
        isNamed = true;
        listener.state?.(id, state);
      },
      progress: (progress: JobProgress) => listener.progress?.({ ...progress, jobId: id }),
      warning: (message) => listener.warning?.(id, message),
    });
  } finally {
    view.end();
  }
}

/** `stillpoint job cancel ID`, by the service. Of a job that runs it only asks. */
export async function cancelByService(cli: Cli, client: AgentClient, id: string): Promise<ExitCode> {
  const { job: before } = await client.job(id);
  const asked = await client.cancelJob(id);
  if (before?.hold === JobHold.JOB_HOLD_RUNNING) {
    tell(cli, asked, `asked job ${asked.id} to end; follow it with: stillpoint job watch ${asked.id}`);
    return 0;
  }
  // That a cancelled job is cancelled is what was asked for.
  return tellEnd(cli, client, asked.id, (job) => (job.holdsMachine ? 9 : 0));
}

/** `stillpoint job retry ID`, by the service. */
export async function retryByService(cli: Cli, client: AgentClient, id: string): Promise<ExitCode> {
  const { id: jobId } = await client.retryJob(id);
  return tellEnd(cli, client, jobId, exitCodeOfJob);
}

async function tellEnd(
  cli: Cli,
  client: AgentClient,
  id: string,
  codeOf: (job: ToldJob) => ExitCode,
): Promise<ExitCode> {
  const { id: endedId } = await showJob(cli, client, id);
  const { job: message } = await client.job(endedId);
  if (message === undefined) throw new Error(`the service knows no job ${endedId}`);
  const job = jobOf(message);
  const code = codeOf(job);
  tell(cli, message, `job ${job.id} (${job.kind} of ${job.machineName}) has ended: ${job.state}`);
  if (code !== 0) cli.terminal.error(new JobFailure(job), job.machineName);
  return code;
}

function tell(cli: Cli, job: Job, text: string): void {
  if (cli.terminal.json) cli.terminal.object(jobJsonOf(job));
  else cli.terminal.out(text);
}
