import { isSameOwner, thisOwner } from '../jobs/owner.ts';
import type { ServiceContext } from './service.ts';

/** A service that is to end brings its jobs to their end first: it does not wait for somebody to resume them. */
export function resumeAtEnd({ agent, log, signal }: Pick<ServiceContext, 'agent' | 'log' | 'signal'>): void {
  const { journal } = agent.parts;
  const resume = (): void => {
    try {
      for (const { id, owner, pause } of journal.holding()) {
        if (pause === null || owner === null || !isSameOwner(owner, thisOwner())) continue;
        log.info({ jobId: id }, 'the job goes on: the service is to end');
        journal.endPause(id);
      }
    } catch (error) {
      // They go on by themselves when their time is over.
      log.error({ err: error }, 'paused jobs could not be resumed');
    }
  };
  signal.addEventListener('abort', resume, { once: true });
}
