import { ConfigError } from './errors.ts';
import { storageLines } from './config.ts';
import { emptyPolicy, wholeSchedule } from './schema.ts';
import type { Config, PolicyConfig, ScheduleConfig } from './schema.ts';
import { targetsOf } from './storageGroups.ts';

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
  const said = policyOf(config, machineName);
  if (said.kind === 'excluded') return said;
  const { name, policy } = said;
  const copies = policy.replicate.map(({ to }) => to);
  const storages = policy.storages ?? targetsOf(config).filter((one) => !copies.includes(one));
  if (storages.length === 0) {
    throw new ConfigError('NO_STORAGE', 'no storage is configured', { hint: storageLines(configPath) });
  }
  const schedule = policy.schedule === undefined ? null : wholeSchedule(policy.schedule);
  return { kind: 'policy', policy: { ...policy, name, storages, schedule } };
}

/** What of its policy bounds the jobs of a machine; null for one that is excluded. */
export function bandwidthsFor(
  config: Config,
  machineName: string,
): { readonly readBytesPerSecond: number; readonly mergeBytesPerSecond: number } | null {
  const said = policyOf(config, machineName);
  if (said.kind === 'excluded') return null;
  const { read, merge } = said.policy;
  return {
    readBytesPerSecond: read.bandwidthBytesPerSecond,
    mergeBytesPerSecond: merge.bandwidthBytesPerSecond,
  };
}

type ConfiguredPolicy =
  | { readonly kind: 'policy'; readonly name: string; readonly policy: PolicyConfig }
  | Extract<PolicyDecision, { readonly kind: 'excluded' }>;

function policyOf(config: Config, machineName: string): ConfiguredPolicy {
  const rule = config.machines.find(({ match }) => matchesName(match, machineName));
  if (rule?.exclude === true) return { kind: 'excluded', match: rule.match };
  const name = rule?.policy ?? 'default';
  return { kind: 'policy', name, policy: config.policies[name] ?? emptyPolicy() };
}

/** What `prune` goes by in one storage: where backups are copied to, other rules may hold than where they are made. */
export function keepIn(
  { keep, replicate }: Pick<PolicyConfig, 'keep' | 'replicate'>,
  storage: string,
): PolicyConfig['keep'] {
  const copied = replicate.find(({ to, keep: said }) => to === storage && said !== undefined)?.keep;
  return copied === undefined ? keep : copied;
}

/**
 * True when a name fits a pattern in which `*` stands for any characters and `?` for one. However many stars there are,
 * it takes no more than the product of both lengths: rules also come from elsewhere, and a regular expression of many
 * stars can take for ever.
 */
export function matchesName(pattern: string, machineName: string): boolean {
  const [wanted, name] = [Array.from(pattern), Array.from(machineName)];
  let [at, next] = [0, 0];
  /** Where the last star stands, and what it stands for ends. */
  let [star, end] = [-1, 0];
  while (next < name.length) {
    if (wanted[at] === '*') {
      [star, end] = [at, next];
      at += 1;
    } else if (at < wanted.length && (wanted[at] === '?' || wanted[at] === name[next])) {
      at += 1;
      next += 1;
    } else if (star >= 0) {
      end += 1;
      [at, next] = [star + 1, end];
    } else return false;
  }
  return wanted.slice(at).every((left) => left === '*');
}
