import type { JobProgress, JobRow } from '../jobs/job.ts';

/** More jobs than these are only counted: `systemctl status` has one line for it. */
const namedMax = 3;

/** What the service is at. */
export interface ServiceState {
  readonly jobs: readonly (Pick<JobRow, 'machineName' | 'state'> & {
    readonly progress: Pick<JobProgress, 'doneBytes' | 'totalBytes'> | undefined;
  })[];
  readonly nextDueMs: number | null;
  readonly ending: boolean;
  /** What keeps the watchdog from being fed. */
  readonly problem: string | null;
}

/** What the service is at, in one line, as `systemctl status` shows it. */
export function statusLine({ jobs, nextDueMs, ending, problem }: ServiceState): string {
  if (problem !== null) return `stuck: ${problem}`;
  const named = jobs.slice(0, namedMax).map(describeJob);
  if (jobs.length > namedMax) named.push(`${jobs.length - namedMax} more`);
  const work = named.join(', ');
  if (ending) return work === '' ? 'ending' : `ending; until then ${work}`;
  const next = nextDueMs === null ? '' : `; next backup ${new Date(nextDueMs).toISOString()}`;
  return `${work === '' ? 'idle' : work}${next}`;
}

function describeJob({ machineName, state, progress }: ServiceState['jobs'][number]): string {
  const { doneBytes, totalBytes = 0 } = progress ?? {};
  const percent =
    doneBytes === undefined || totalBytes === 0 ? '' : ` ${Math.floor((100 * doneBytes) / totalBytes)} %`;
  return `${machineName} ${state}${percent}`;
}
