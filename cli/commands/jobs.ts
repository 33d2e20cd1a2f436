import type { JobRow } from '../../agent/jobs/job.ts';
import type { Journal } from '../../agent/jobs/journal.ts';
import { formatDuration } from '../../common/time.ts';
import { shortId } from '../backups.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { holdOf, jobJson, stateText, timeOf } from '../jobView.ts';
import type { Text } from '../output.ts';
import { describeProgress } from '../progress.ts';
import { reading } from '../session.ts';

/** So many ended jobs are shown unless all are asked for. */
const shownMax = 20;

/** `stillpoint jobs`. */
export const jobs: RunVerb = (cli, _, options) =>
  reading(cli, async ({ agent }) => {
    const { journal } = agent.parts;
    const machine = options.text('machine');
    const rows = select(journal, machine, options.flag('all'));
    if (cli.terminal.json) cli.terminal.object({ jobs: rows.map((job) => jobJson(journal, job)) });
    else if (rows.length > 0) printJobs(cli, journal, rows);
    else cli.terminal.remark('there are no jobs');
    return 0;
  });

/** The newest first; what holds a machine is always among them. */
function select(journal: Journal, machine: string | undefined, all: boolean): readonly JobRow[] {
  if (all) return journal.list({ machine, limit: -1 });
  const rows = new Map(journal.list({ machine, limit: shownMax }).map((job) => [job.id, job]));
  for (const job of journal.holding())
    if ([undefined, job.machineName, job.machineUuid].includes(machine)) rows.set(job.id, job);
  return [...rows.values()].toSorted((a, b) => (a.id < b.id ? 1 : -1));
}

function printJobs(cli: Cli, journal: Journal, rows: readonly JobRow[]): void {
  const titles = ['ID', 'KIND', 'MACHINE', 'STATE', 'BEGUN', 'TOOK', 'REMARKS'];
  const table = rows.map((job): readonly Text[] => {
    const hold = holdOf(journal, job);
    const took = job.finishedAtMs === null ? '-' : formatDuration(job.finishedAtMs - job.createdAtMs);
    const begun = timeOf(job.createdAtMs);
    return [
      shortId(job.id),
      job.kind,
      job.machineName,
      stateText(job, hold),
      begun,
      took,
      remarkOf(journal, job),
    ];
  });
  cli.terminal.table(
    titles.map((title) => ({ title })),
    table,
  );
}

function remarkOf(journal: Journal, job: JobRow): string {
  if (job.error !== null) return `${job.error.code}: ${job.error.message}`;
  const progress = job.holdsMachine ? journal.progress(job.id) : undefined;
  return progress === undefined ? '' : describeProgress(progress);
}
