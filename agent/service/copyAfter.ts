import { type ErrorRecord, errorRecord } from '../../common/errors.ts';
import { aboutMachine, type Logger } from '../../common/log.ts';
import type { Agent } from '../agent.ts';
import type { JobRow } from '../jobs/job.ts';
import type { ReplicationRule } from '../policyReplication.ts';
import type { ScheduledMachine } from './timetables.ts';

/** How a copy ended. */
export interface CopyEnd {
  readonly rule: ReplicationRule;
  /** null: it could not be created. */
  readonly job: JobRow | null;
  readonly error: ErrorRecord | null;
}

export interface CopyOptions {
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** Hears of the end of each. */
  readonly onCopy?: ((end: CopyEnd) => void) | undefined;
}

/**
 * Makes, after a backup, the copies that the policy of the machine asks for. The backup is made whatever comes
 * of this: all is told in the log, and nothing is thrown. What is missing is brought by the next one; when the service
 * ends, a copy that is under way is given up.
 */
export async function copyAfter(
  agent: Agent,
  machine: Pick<ScheduledMachine, 'uuid' | 'name'>,
  options: CopyOptions,
): Promise<void> {
  for (const rule of agent.replications.rulesFor(machine.name)) {
    if (options.signal.aborted) return;
    const end = await copy(agent, machine, rule, options);
    options.onCopy?.({ rule, ...end });
  }
}

async function copy(
  agent: Agent,
  { uuid, name }: Pick<ScheduledMachine, 'uuid' | 'name'>,
  rule: ReplicationRule,
  { log, signal }: CopyOptions,
): Promise<Omit<CopyEnd, 'rule'>> {
  const about = { ...aboutMachine({ uuid, name }), from: rule.from, to: rule.to };
  try {
    const { id: jobId } = agent.replications.create({ uuid, name }, rule);
    log.info({ ...about, jobId }, 'copy begins');
    const cancel = (): void => {
      try {
        agent.parts.journal.requestCancel(jobId);
      } catch (error) {
        // Nobody catches what a listener throws; the copy goes on, and the service waits for it.
        log.error({ ...about, jobId, err: error }, 'copy could not be cancelled');
      }
    };
    signal.addEventListener('abort', cancel);
    try {
      const job = await agent.run(agent.parts.journal.get(jobId));
      const { state, error } = job;
      if (error === null) log.info({ ...about, jobId, state }, 'copy has ended');
      else log.error({ ...about, jobId, state, err: error }, 'copy failed; the next backup catches up');
      return { job, error };
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  } catch (error) {
    log.error({ ...about, err: error }, 'copy could not be made; the next backup catches up');
    return { job: null, error: errorRecord(error) };
  }
}
