import type { BackupEntry, Storage } from '../storage/storage.ts';
import { HypervisorError } from './hypervisor/errors.ts';
import { planFromSources, type SourcesPlan } from './replication.ts';

/** What somebody asks to be copied, by hand. */
export interface WishedCopies {
  /** Names or UUIDs; all unless told. */
  readonly machines: readonly string[];
  /** Of a group all of its storages. */
  readonly sources: readonly Storage[];
  readonly to: Storage;
  readonly older: boolean;
}

export interface WishedPlan extends SourcesPlan {
  /** How many are not there and left out, because they are older than the newest one there. */
  readonly leftOut: number;
}

/**
 * What a copy would bring that somebody asks for.
 * @throws HypervisorError MACHINE_NOT_FOUND for a name of which no storage has a backup; StorageError, RepositoryError
 */
export async function planWished({ machines, sources, to, older }: WishedCopies): Promise<WishedPlan> {
  const everything = await planFromSources(sources, { machines, to, older: true });
  if (everything.unread.length === 0) await requireKnown(machines, [...sources, to]);
  if (older) return { ...everything, leftOut: 0 };
  const plan = await planFromSources(sources, { machines, to, older });
  return { ...plan, leftOut: everything.copies.length - plan.copies.length };
}

async function requireKnown(machines: readonly string[], storages: readonly Storage[]): Promise<void> {
  if (machines.length === 0) return;
  const entries: BackupEntry[] = [];
  for (const storage of storages) entries.push(...(await storage.list()));
  const places = storages.map(({ name }) => name).join(', ');
  for (const wanted of machines) {
    if (entries.some(({ machine }) => machine.name === wanted || machine.uuid === wanted)) continue;
    const backup = wanted.length < 4 ? undefined : entries.find(({ id }) => id?.startsWith(wanted) === true);
    if (backup !== undefined)
      throw new HypervisorError('MACHINE_NOT_FOUND', `${wanted} is a backup; copies are made of machines`, {
        hint: `name its machine: ${backup.machine.name}`,
      });
    throw new HypervisorError('MACHINE_NOT_FOUND', `there is no backup of a machine ${wanted} in ${places}`, {
      hint: 'stillpoint list',
    });
  }
}
