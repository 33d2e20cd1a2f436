import { StorageError } from './errors.ts';
import type { BackupEntry } from './storage.ts';

/** Until when a backup cannot be deleted, if that is in the future, RFC 3339. */
export function lockedNow(
  { lockedUntil = null }: Pick<BackupEntry, 'lockedUntil'>,
  now: Date,
): string | null {
  return lockedUntil !== null && new Date(lockedUntil) > now ? lockedUntil : null;
}

/** What whoever wants to remove a locked backup hears. */
export function backupLockedError(
  backup: Pick<BackupEntry, 'id' | 'directory' | 'storage'>,
  until: string,
): StorageError {
  const name = backup.id ?? backup.directory;
  return new StorageError('BACKUP_LOCKED', `backup ${name} is locked in ${backup.storage} until ${until}`, {
    hint: `nobody can delete it before ${until}; then: stillpoint delete ${backup.id ?? 'MACHINE@T1'}`,
  });
}
