import type { Config, PolicyConfig } from './schema.ts';

/** Where backups go unless told: every storage group, and every storage that is in none. */
export function targetsOf({
  storages,
  storageGroups,
}: Pick<Config, 'storages' | 'storageGroups'>): readonly string[] {
  const grouped = new Set(Object.values(storageGroups).flatMap((group) => group.storages));
  return [...Object.keys(storageGroups), ...Object.keys(storages).filter((name) => !grouped.has(name))];
}

/** The storages that a name stands for: those of a group in their order, otherwise itself. */
export function membersOf({ storageGroups }: Pick<Config, 'storageGroups'>, name: string): readonly string[] {
  return storageGroups[name]?.storages ?? [name];
}

/** The storages that the copies of a policy into one storage come from, by all of its entries. */
export function sourcesInto(
  config: Pick<Config, 'storageGroups'>,
  replicate: readonly Pick<PolicyConfig['replicate'][number], 'from' | 'to'>[],
  to: string,
): readonly string[] {
  const sources = replicate.filter((rule) => rule.to === to).flatMap(({ from }) => membersOf(config, from));
  return [...new Set(sources)];
}

/** Storages whose backups are left out of the copies, though others of their group are copied on. */
export interface UncoveredMembers {
  readonly group: string;
  readonly to: string;
  readonly members: readonly string[];
}

/**
 * Where a policy writes to a group and only some of its storages are copied on: a backup that one of the others takes
 * is in no copy.
 * @param storages what the policy writes to: names of storages and groups
 */
export function uncoveredMembers(
  config: Pick<Config, 'storageGroups'>,
  storages: readonly string[],
  replicate: PolicyConfig['replicate'],
): readonly UncoveredMembers[] {
  const uncovered: UncoveredMembers[] = [];
  for (const group of storages.filter((name) => config.storageGroups[name] !== undefined))
    for (const to of new Set(replicate.map((rule) => rule.to))) {
      const sources = sourcesInto(config, replicate, to);
      const members = membersOf(config, group);
      const missing = members.filter((name) => !sources.includes(name));
      if (missing.length > 0 && missing.length < members.length)
        uncovered.push({ group, to, members: missing });
    }
  return uncovered;
}
