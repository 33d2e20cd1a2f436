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
  const mine = ({ machineName, machineUuid }: JobRow): boolean =>
    machine === undefined || machineName === machine || machineUuid === machine;
  const rows = journal.list({ limit: -1 }).filter(mine);
  if (all) return rows;
  const recent = new Set(rows.slice(0, shownMax));
  return rows.filter((job) => job.holdsMachine || recent.has(job));
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
