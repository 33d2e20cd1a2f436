import { ConfigError } from './errors.ts';
import { storageLines } from './config.ts';
import { emptyPolicy, wholeSchedule } from './schema.ts';
import type { Config, PolicyConfig, ScheduleConfig } from './schema.ts';

/** How backups of one machine are made: a policy with everything decided. */
export interface ResolvedPolicy extends Omit<PolicyConfig, 'storages' | 'schedule'> {
  /** Name of the policy. */
  readonly name: string;
  /** Names of storages and storage groups, at least one. */
  readonly storages: readonly string[];
  /** When backups are made; null: by command only. */
  readonly schedule: ScheduleConfig | null;
}

export type PolicyDecision =
  | { readonly kind: 'policy'; readonly policy: ResolvedPolicy }
  /** The operator does not want this machine backed up; `match` is the rule that says so. */
  | { readonly kind: 'excluded'; readonly match: string };

/**
 * The policy of a machine: that of the first rule that matches its name, otherwise `default`. A policy counts
 * as a whole; what it leaves out has its default and is not taken from another policy.
 *
 * @throws ConfigError NO_STORAGE when there is no storage, with the lines to add
 */
export function policyFor(config: Config, machineName: string, configPath: string): PolicyDecision {
  const rule = config.machines.find(({ match }) => matchesName(match, machineName));
  if (rule?.exclude === true) return { kind: 'excluded', match: rule.match };
  const name = rule?.policy ?? 'default';
  const policy = config.policies[name] ?? emptyPolicy();
  const storages = policy.storages ?? targetsOf(config);
  if (storages.length === 0) {
    throw new ConfigError('NO_STORAGE', 'no storage is configured', { hint: storageLines(configPath) });
  }
  const schedule = policy.schedule === undefined ? null : wholeSchedule(policy.schedule);
  return { kind: 'policy', policy: { ...policy, name, storages, schedule } };
}

/** True when a name fits a pattern in which `*` stands for any characters and `?` for one. */
export function matchesName(pattern: string, machineName: string): boolean {
  const escaped = pattern.replaceAll(/[\\^$.|+()[\]{}]/g, String.raw`\$&`);
  return new RegExp(`^${escaped.replaceAll('*', '.*').replaceAll('?', '.')}$`, 'su').test(machineName);
}

/** Where backups go unless told: every storage group, and every storage that is in none. */
export function targetsOf({ storages, storageGroups }: Config): readonly string[] {
  const grouped = new Set(Object.values(storageGroups).flatMap((group) => group.storages));
  return [...Object.keys(storageGroups), ...Object.keys(storages).filter((name) => !grouped.has(name))];
}

/** The storages that a name stands for: those of a group in their order, otherwise itself. */
export function membersOf({ storageGroups }: Pick<Config, 'storageGroups'>, name: string): readonly string[] {
  return storageGroups[name]?.storages ?? [name];
}
