import type { Agent } from '../agent/agent.ts';
import type { StorageBandwidths } from '../agent/storageBandwidths.ts';
import { errorRecord } from '../common/errors.ts';
import type { LoadedConfig } from '../config/config.ts';

/** Whose limits follow the configuration. */
export interface FollowedLimits {
  readonly bandwidths: StorageBandwidths;
  readonly agent: Pick<Agent, 'followLimits'>;
}

/**
 * Has what a command does follow the limits of its configuration while it runs; everything else of it stays as it was
 * when the command began.
 */
export async function followLimits(
  tell: { remark(text: string): void; warning(text: string): void },
  { files }: LoadedConfig,
  configPath: string,
  { bandwidths, agent }: FollowedLimits,
): Promise<AsyncDisposable> {
  const nothing = { [Symbol.asyncDispose]: (): Promise<void> => Promise.resolve() };
  // Where all is default there is nothing to follow.
  if (files.length === 0) return nothing;
  const { ConfigWatcher } = await import('../config/watcher.ts');
  const watcher = ConfigWatcher.start(configPath, {
    changed: ({ config }) => {
      for (const name of bandwidths.follow(config))
        tell.remark(`storage ${name} has another bandwidth from now on`);
      for (const name of agent.followLimits(config))
        tell.remark(`the backup of ${name} has other limits from now on`);
    },
    refused: (error) =>
      tell.warning(`a change of the configuration is not in force: ${errorRecord(error).message}`),
  });
  return watcher.catch((error: unknown) => {
    // A host without inotify watches to spare has its backups all the same.
    tell.warning(`limits stay as they are until the end of this command: ${errorRecord(error).message}`);
    return nothing;
  });
}
