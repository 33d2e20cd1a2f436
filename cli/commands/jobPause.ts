import { pauseJob, resumeJob } from '../../agent/jobPauses.ts';
import type { JobRow } from '../../agent/jobs/job.ts';
import type { Journal } from '../../agent/jobs/journal.ts';
import { openAgent } from '../../agent/main.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { parseDuration } from '../duration.ts';
import { jobJson, pauseText, timeOf } from '../jobView.ts';
import { commandLog, readConfig } from '../session.ts';

const maxDefault = '1h';

/** `stillpoint job pause ID`. */
export const jobPause: RunVerb = (cli, [id = ''], options) => {
  const maxMs = parseDuration(options.text('max') ?? maxDefault, '--max', 'stillpoint job pause --help');
  return atOnce(cli, async (journal) => {
    const job = await pauseJob(journal, id, maxMs);
    const { pause } = job;
    if (cli.terminal.json) cli.terminal.object(jobJson(journal, job));
    // It may have gone on already, where so little time was given.
    else if (pause !== null)
      cli.terminal.out(
        `job ${job.id} (${job.kind} of ${job.machineName}) is ${pauseText(pause)}; it goes on at ${timeOf(pause.untilMs)}, or with: stillpoint job resume ${job.id}`,
      );
  });
};

/** `stillpoint job resume ID`. */
export const jobResume: RunVerb = (cli, [id = '']) =>
  atOnce(cli, async (journal) => {
    const job: JobRow = resumeJob(journal, id);
    if (cli.terminal.json) cli.terminal.object(jobJson(journal, job));
    else cli.terminal.out(`job ${job.id} (${job.kind} of ${job.machineName}) goes on`);
  });

/** Somebody waits for the bandwidth or the disk: other jobs are not taken over first, as by verbs that begin something. */
async function atOnce(cli: Cli, act: (journal: Journal) => Promise<void>): Promise<0> {
  const loaded = await readConfig(cli);
  await using open = await openAgent({ loaded, configPath: cli.configPath, log: commandLog(cli) });
  await act(open.agent.parts.journal);
  return 0;
}
