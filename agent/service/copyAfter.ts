import { aboutMachine, type Logger } from '../../common/log.ts';
import type { Agent } from '../agent.ts';
import type { ReplicationRule } from '../policyReplication.ts';
import type { ScheduledMachine } from './timetables.ts';

/**
 * Makes, after a scheduled backup, the copies that the policy of the machine asks for. The backup is made whatever comes
 * of this: all is told in the log, and nothing is thrown. What is missing is brought by the next one; when the service
 * ends, a copy that is under way is given up.
 */
export async function copyAfter(
  agent: Agent,
  machine: ScheduledMachine,
  { log, signal }: { readonly log: Logger; readonly signal: AbortSignal },
): Promise<void> {
  for (const rule of agent.replications.rulesFor(machine.name)) {
    if (signal.aborted) return;
    await copy(agent, machine, rule, { log, signal });
  }
}

async function copy(
  agent: Agent,
  { uuid, name }: ScheduledMachine,
  rule: ReplicationRule,
  { log, signal }: { readonly log: Logger; readonly signal: AbortSignal },
): Promise<void> {
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
      const { state, error } = await agent.run(agent.parts.journal.get(jobId));
      if (error === null) log.info({ ...about, jobId, state }, 'copy has ended');
      else log.error({ ...about, jobId, state, err: error }, 'copy failed; the next backup catches up');
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  } catch (error) {
    log.error({ ...about, err: error }, 'copy could not be made; the next backup catches up');
  }
}
