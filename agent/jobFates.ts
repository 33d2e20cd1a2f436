import type { JobFate } from '../storage/repository/leftSessions.ts';
import { JobError } from './jobs/errors.ts';
import type { Journal } from './jobs/journal.ts';

/** What the journal of this host knows of the jobs that announced sessions in repositories. */
export function jobFates(journal: Journal): (jobId: string) => JobFate {
  return (jobId) => {
    try {
      return journal.get(jobId).holdsMachine ? 'unfinished' : 'ended';
    } catch (error) {
      if (error instanceof JobError && error.code === 'JOB_NOT_FOUND') return 'unknown';
      throw error;
    }
  };
}
