import type { Agent } from '../agent/agent.ts';
import { noStorage } from '../agent/storedBackups.ts';
import { membersOf } from '../config/storageGroups.ts';
import type { Storage } from '../storage/storage.ts';
import type { Cli } from './cli.ts';
import type { Text } from './output.ts';

/** As much of an agent as the backups of hosts need. */
export interface HostAgent {
  readonly parts: Pick<Agent['parts'], 'storages' | 'configPath' | 'config'>;
  storage(name: string): Storage;
}

/** As much of a session as the backups of hosts need. */
export interface HostSession {
  readonly agent: HostAgent;
  readonly interruption: { readonly signal: AbortSignal };
}

/** The named storages, all of a group that is named, or all. @throws ConfigError NO_STORAGE; AgentError STORAGE_NOT_CONFIGURED */
export function hostStorages(agent: HostAgent, names: readonly string[] | undefined): readonly Storage[] {
  const { storages, config, configPath } = agent.parts;
  const wanted = names?.flatMap((name) => membersOf(config, name)) ?? [...storages.keys()];
  const chosen = [...new Set(wanted)].map((name) => agent.storage(name));
  if (chosen.length === 0) throw noStorage(configPath);
  return chosen;
}

/** What an operator decides about: part of the result for people, beside it for machines. */
export function tell(cli: Cli, ...parts: readonly Text[]): void {
  if (cli.terminal.json) cli.terminal.err(...parts);
  else cli.terminal.out(...parts);
}
