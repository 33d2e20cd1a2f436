import type { Config } from './schema.ts';

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
