import { errorRecord } from '../common/errors.ts';
import { membersOf } from '../config/storageGroups.ts';
import type { Config } from '../config/schema.ts';
import { StorageError } from '../storage/errors.ts';
import { RepositoryError } from '../storage/repository/errors.ts';
import type { Storage } from '../storage/storage.ts';
import { AgentError } from './errors.ts';
import type { Hypervisor } from './hypervisor/hypervisor.ts';
import { type IncrementWishes, planLineages } from './retain/lineage.ts';
import { type ChosenStorages, describeChoice, type StorageChoice } from './retain/storageChoice.ts';
import { fullnessWarnings, requireStorages, requireStoragesForRead } from './retain/storageRoom.ts';
import type { LivePlan } from './snapshot/livePlan.ts';
import type { SavePlan } from './snapshot/plan.ts';
import type { ReadPlan } from './snapshot/readPlan.ts';

/** Rejects with why a storage cannot take what is to be stored. */
export type Trial = (storage: Storage) => Promise<unknown>;

/**
 * Chooses of each storage group the first storage that can be used, and takes other storages as they are. Looked at
 * anew each time: whoever comes back is used again. A storage that the backup goes to anyway is no second copy.
 * @param names of storages and groups
 * @param storage throws for a storage that is not configured
 * @throws AgentError STORAGE_GROUP_UNUSABLE naming each storage of the group and why it cannot be used; what
 * `storage` throws; what a trial throws that is not about its storage
 */
export async function chooseStorages(
  { storageGroups }: Pick<Config, 'storageGroups'>,
  names: readonly string[],
  storage: (name: string) => Storage,
  trial: Trial,
): Promise<ChosenStorages> {
  const isGroup = (name: string): boolean => storageGroups[name] !== undefined;
  const taken = new Set(names.filter((name) => !isGroup(name)));
  for (const name of taken) storage(name);
  const chosen = new Set<string>();
  const storageChoices: StorageChoice[] = [];
  for (const name of new Set(names)) {
    if (!isGroup(name)) {
      chosen.add(name);
      continue;
    }
    const members = membersOf({ storageGroups }, name).map(storage);
    const choice = await chooseMember(name, members, taken, trial);
    storageChoices.push(choice);
    taken.add(choice.storage);
    chosen.add(choice.storage);
  }
  return { storages: [...chosen], storageChoices };
}

/**
 * The first storage of a group that can be used.
 * @param taken the backup goes there anyway
 * @throws AgentError STORAGE_GROUP_UNUSABLE
 */
export async function chooseMember(
  group: string,
  members: readonly Storage[],
  taken: ReadonlySet<string>,
  trial: Trial,
): Promise<StorageChoice> {
  const passedOver: StorageChoice['passedOver'] = [];
  let isRetryable = false;
  for (const member of members) {
    const { name } = member;
    if (taken.has(name)) {
      const message = 'the backup goes there anyway';
      passedOver.push({ storage: name, code: 'STORAGE_TAKEN', message });
      continue;
    }
    try {
      await trial(member);
      return { group, storage: name, passedOver };
    } catch (error) {
      if (!(error instanceof StorageError) && !(error instanceof RepositoryError)) throw error;
      const { code, message, retryable } = errorRecord(error);
      isRetryable ||= retryable;
      passedOver.push({ storage: name, code, message });
    }
  }
  const reasons = passedOver.map(({ storage, code, message }) => `${storage} (${code}: ${message})`);
  throw new AgentError(
    'STORAGE_GROUP_UNUSABLE',
    `no storage of group ${group} can be used: ${reasons.join('; ')}`,
    {
      hint: 'stillpoint storage list; put one of them in order, and start the backup again',
      retryable: isRetryable,
    },
  );
}

/**
 * Makes the choices of a backup anew, now that more is known of it: a job may have waited for long, and what it needs
 * shows in its plan only.
 * @throws AgentError STORAGE_GROUP_UNUSABLE, STORAGE_NOT_CONFIGURED; what a trial throws
 */
export async function chooseAgain(
  config: Pick<Config, 'storageGroups'>,
  settings: ChosenStorages,
  storage: (name: string) => Storage,
  trial: Trial,
): Promise<ChosenStorages> {
  const { storages, storageChoices } = settings;
  if (storageChoices.length === 0) return { storages, storageChoices };
  return chooseStorages(config, targetsOfChoice(settings), storage, trial);
}

/** Whether a storage can take a backup that reads volumes where they are, by what its lineage there needs. */
export function trialOfRead(
  hypervisor: Hypervisor,
  plan: LivePlan | ReadPlan,
  wishes: IncrementWishes,
  memoryBytes = 0,
): Trial {
  return async (storage) =>
    requireStoragesForRead([storage], await planLineages(hypervisor, plan, [storage], wishes), memoryBytes);
}

/** The same of a backup in mode `save`. */
export function trialOfSave(plan: SavePlan): Trial {
  return (storage) => requireStorages([storage], plan);
}

/** What there is to say about the storages of a backup: who stands in for whom, and which are nearly full. */
export async function warningsOf(
  { storageChoices }: ChosenStorages,
  storages: readonly Storage[],
): Promise<readonly string[]> {
  const standIns = storageChoices.filter(({ passedOver }) => passedOver.length > 0);
  return [...standIns.map(describeChoice), ...(await fullnessWarnings(storages))];
}

/** What a backup was asked to go to, with groups as such. */
export function targetsOfChoice({ storages, storageChoices }: ChosenStorages): readonly string[] {
  return storages.map((name) => storageChoices.find(({ storage }) => storage === name)?.group ?? name);
}
