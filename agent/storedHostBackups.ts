import { parsePointInTime } from '../common/time.ts';
import { StorageError } from '../storage/errors.ts';
import type { HostBackupEntry, Storage } from '../storage/storage.ts';
import { noStorage, type OnUnreachable } from './storedBackups.ts';

/** So many characters of an id are enough, as for backups of machines. */
const idCharactersMin = 8;

/** Every copy of one backup of a host. */
export type HostCopies = readonly [HostBackupEntry, ...HostBackupEntry[]];

/** Where backups of hosts are. */
export interface HostStorages {
  readonly storages: ReadonlyMap<string, Pick<Storage, 'name' | 'hostBackups'>>;
  readonly configPath: string;
}

/**
 * Every backup of a host in every storage, oldest first.
 * @throws ConfigError NO_STORAGE: nothing could be looked at
 * @param onUnreachable is told of a storage that does not answer, which then hides no other one; may throw
 */
export async function listHostBackups(
  { storages, configPath }: HostStorages,
  onUnreachable: OnUnreachable,
): Promise<readonly HostBackupEntry[]> {
  if (storages.size === 0) throw noStorage(configPath);
  const entries: HostBackupEntry[] = [];
  for (const storage of storages.values()) {
    try {
      entries.push(...(await storage.hostBackups()));
    } catch (error) {
      onUnreachable(storage.name, error);
    }
  }
  return entries.toSorted((a, b) => a.pointInTime.localeCompare(b.pointInTime));
}

/**
 * The copies of the backup that somebody means: by id, or its beginning, `HOST@latest` or `HOST@T1`. Only the last
 * names one whose manifest cannot be read, by its directory.
 * @param entries oldest first
 * @throws StorageError BACKUP_NOT_FOUND, BACKUP_AMBIGUOUS
 */
export function selectHostBackup(entries: readonly HostBackupEntry[], reference: string): HostCopies {
  const named = namedBy(entries, reference);
  const ids = new Set(named.flatMap(({ manifest }) => manifest?.id ?? []));
  const copies = entries.filter(
    (entry) => named.includes(entry) || (entry.manifest !== null && ids.has(entry.manifest.id)),
  );
  const [first, ...others] = copies;
  if (first === undefined)
    throw new StorageError('BACKUP_NOT_FOUND', `there is no backup of a host ${reference}`, {
      hint: 'stillpoint list --host',
    });
  if (ids.size > 1)
    throw new StorageError('BACKUP_AMBIGUOUS', `${reference} can be ${ids.size} backups of a host`, {
      hint: 'give more of its id: stillpoint list --host',
    });
  return [first, ...others];
}

function namedBy(entries: readonly HostBackupEntry[], reference: string): readonly HostBackupEntry[] {
  const at = reference.lastIndexOf('@');
  if (at === -1) return entries.filter(({ manifest }) => isMeant(manifest?.id, reference));
  const ofHost = entries.filter(({ host }) => host === reference.slice(0, at));
  const time = reference.slice(at + 1);
  if (time === 'latest') return ofHost.filter(({ problem }) => problem === null).slice(-1);
  const wanted = parsePointInTime(time) ?? new Date(time);
  return ofHost.filter(({ pointInTime }) => new Date(pointInTime).getTime() === wanted.getTime());
}

/** Damaged ones that `HOST@latest` passes over; none for any other reference. */
export function damagedAfterLatest(
  entries: readonly HostBackupEntry[],
  reference: string,
  [latest]: HostCopies,
): readonly HostBackupEntry[] {
  const host = latestHostOf(reference);
  return entries.filter(
    (entry) => entry.host === host && entry.problem !== null && entry.pointInTime > latest.pointInTime,
  );
}

/** The host of `HOST@latest`. */
function latestHostOf(reference: string): string | null {
  return /^(.+)@latest$/.exec(reference)?.[1] ?? null;
}

function isMeant(id: string | undefined, typed: string): boolean {
  const reference = typed.toLowerCase();
  return (
    id !== undefined &&
    (id === reference || (reference.length >= idCharactersMin && id.startsWith(reference)))
  );
}
