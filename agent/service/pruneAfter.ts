import { aboutMachine, type Logger } from '../../common/log.ts';
import type { Agent } from '../agent.ts';
import type { PruneListener } from '../pruning.ts';
import type { ScheduledMachine } from './timetables.ts';

/**
 * Removes, after a scheduled backup, what the rules of the machine's policy do not keep. The backup is made whatever
 * comes of this: all is told in the log, and nothing is thrown.
 */
export async function pruneAfter(
  agent: Agent,
  machine: ScheduledMachine,
  { log, signal }: { readonly log: Logger; readonly signal: AbortSignal },
): Promise<void> {
  const about = aboutMachine(machine);
  const listener: PruneListener = {
    removed: (_, { id, storage, pointInTime }) =>
      log.info({ ...about, backup: id, storage, pointInTime }, 'backup pruned'),
    keptAfterAll: (_, { entry: { id, storage }, reasons }) =>
      log.info({ ...about, backup: id, storage, reasons }, 'backup kept after all'),
    failed: ({ storage }, entry, error) =>
      log.error({ ...about, backup: entry?.id, storage, err: error }, 'backup could not be pruned'),
  };
  try {
    const plan = await agent.pruner.plan({ machines: [machine.uuid] }, (storage, error) =>
      log.error({ ...about, storage, err: error }, 'storage could not be pruned'),
    );
    await agent.pruner.run(plan, { signal, listener });
  } catch (error) {
    log.error({ ...about, err: error }, 'backups could not be pruned');
  }
}
