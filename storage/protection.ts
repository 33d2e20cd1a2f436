import { StorageError } from './errors.ts';
import type { BackupEntry } from './storage.ts';

/** As much as an operator may say about why a backup is protected. */
export const protectionReasonLengthMax = 1000;

/** What whoever wants to remove a protected backup hears. */
export function protectedError(
  backup: Pick<BackupEntry, 'id' | 'directory' | 'storage'>,
  reason: string | null,
): StorageError {
  const name = backup.id ?? backup.directory;
  const because = reason === null ? '' : `: ${reason}`;
  return new StorageError('BACKUP_PROTECTED', `backup ${name} is protected in ${backup.storage}${because}`, {
    hint: `stillpoint protect ${backup.id ?? 'MACHINE@T1'} --off, if it may go`,
  });
}
