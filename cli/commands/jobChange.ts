import type { JobRow } from '../../agent/jobs/job.ts';
import { connectToService } from '../api/connect.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { type ExitCode, exitCodeOfJob } from '../exitCodes.ts';
import { JobFailure } from '../jobFailure.ts';
import { holdOf, jobJson } from '../jobView.ts';
import { changing, type ChangeSession } from '../session.ts';

/** `stillpoint job cancel ID`. Of a job that runs elsewhere it only asks; `job watch` shows how it ends. */
export const jobCancel: RunVerb = async (cli, [id = '']) => {
  using client = await connectToService(cli);
  if (client !== null) {
    const { cancelByService } = await import('./serviceJobs.ts');
    return await cancelByService(cli, client, id);
  }
  return cancelHere(cli, id);
};

const cancelHere = (cli: Cli, id: string): Promise<ExitCode> =>
  changing(
    cli,
    async (session) => {
      const { agent, view, takenOver } = session;
      const before = agent.parts.journal.get(id);
      view.name(before.id, before.machineName);
      const job = takenOver.find((row) => row.id === before.id) ?? (await agent.cancel(before.id));
      if (holdOf(agent.parts.journal, job) === 'running') {
        print(
          cli,
          session,
          job,
          `asked job ${job.id} to end; follow it with: stillpoint job watch ${job.id}`,
        );
        return 0;
      }
      // That a cancelled job is cancelled is what was asked for.
      const code = job.holdsMachine ? 9 : 0;
      return tellEnd(cli, session, job, code);
    },
    // The job of a dead agent must be given up, not finished, when it is taken over.
    ({ parts: { journal } }) => {
      const job = journal.get(id);
      if (job.holdsMachine) journal.requestCancel(job.id);
    },
  );

/** `stillpoint job retry ID`. */
export const jobRetry: RunVerb = async (cli, [id = '']) => {
  using client = await connectToService(cli);
  if (client !== null) {
    const { retryByService } = await import('./serviceJobs.ts');
    return await retryByService(cli, client, id);
  }
  return retryHere(cli, id);
};

const retryHere = (cli: Cli, id: string): Promise<ExitCode> =>
  changing(cli, async (session) => {
    const { agent, view, takenOver } = session;
    const before = agent.parts.journal.get(id);
    view.name(before.id, before.machineName);
    const job = takenOver.find((row) => row.id === before.id) ?? (await agent.retry(before.id));
    return tellEnd(cli, session, job, exitCodeOfJob(job));
  });

function tellEnd(cli: Cli, session: ChangeSession, job: JobRow, code: ExitCode): ExitCode {
  session.view.end();
  print(cli, session, job, `job ${job.id} (${job.kind} of ${job.machineName}) has ended: ${job.state}`);
  if (code !== 0) cli.terminal.error(new JobFailure(job), job.machineName);
  return code;
}

function print(cli: Cli, { agent }: ChangeSession, job: JobRow, text: string): void {
  if (cli.terminal.json) cli.terminal.object(jobJson(agent.parts.journal, job));
  else cli.terminal.out(text);
}
