import type { JobFate } from '../storage/repository/leftSessions.ts';
import type { Journal } from './jobs/journal.ts';

/** What the journal of this host knows of the jobs that announced sessions in repositories. */
export function jobFates(journal: Journal): (jobId: string) => JobFate {
  return (jobId) => {
    const job = journal.find(jobId);
    if (job === undefined) return 'unknown';
    return job.holdsMachine ? 'unfinished' : 'ended';
  };
}
