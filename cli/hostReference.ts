import {
  damagedAfterLatest,
  type HostCopies,
  type HostStorages,
  listHostBackups,
  selectHostBackup,
} from '../agent/storedHostBackups.ts';
import type { OnUnreachable } from '../agent/storedBackups.ts';
import { StorageError } from '../storage/errors.ts';
import type { Cli } from './cli.ts';

/**
 * The backup of a host that somebody means. Tells of newer ones that are damaged, which `HOST@latest` passes over.
 * @param onUnreachable is told of a storage that does not answer when another one has the backup; may throw
 * @throws StorageError BACKUP_NOT_FOUND, BACKUP_AMBIGUOUS; why a storage does not answer, where no other one has it
 */
export async function findHostBackup(
  { terminal }: Pick<Cli, 'terminal'>,
  storages: HostStorages,
  reference: string,
  onUnreachable: OnUnreachable,
): Promise<HostCopies> {
  const failures: { readonly storage: string; readonly error: unknown }[] = [];
  const entries = await listHostBackups(storages, (storage, error) => failures.push({ storage, error }));
  const copies = select();
  for (const { storage, error } of failures) onUnreachable(storage, error);
  for (const { storage, directory, problem } of damagedAfterLatest(entries, reference, copies))
    terminal.warning(
      `${reference} is ${copies[0].pointInTime}: the newer ${directory} in ${storage} is damaged (${problem ?? 'no reason is known'})`,
    );
  return copies;

  function select(): HostCopies {
    try {
      return selectHostBackup(entries, reference);
    } catch (error) {
      // It may be in the storage that could not be asked: that it is nowhere would not be true.
      const isMissing = error instanceof StorageError && error.code === 'BACKUP_NOT_FOUND';
      if (isMissing && failures[0] !== undefined) throw failures[0].error;
      throw error;
    }
  }
}
