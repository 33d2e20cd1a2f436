import type { BackupEntry } from '../storage/storage.ts';

type Verifiable = Pick<BackupEntry, 'storage' | 'directory' | 'pointInTime' | 'dataVerified'>;

/**
 * Copies of backups of which every byte is to be read, in the order in which that is most needed: first those that
 * never were, the oldest backup first; then those whose last reading is the longest ago. A run that ends early is
 * gone on with by the next one, because what was read comes last.
 *
 * @param olderThanMs readings that are not as old are left out; 0 leaves none out
 */
export function dueForReading<Entry extends Verifiable>(
  entries: readonly Entry[],
  { now, olderThanMs }: { readonly now: Date; readonly olderThanMs: number },
): readonly Entry[] {
  return entries.filter((entry) => isDue(entry, now, olderThanMs)).toSorted(compare);
}

/** A clock that was wrong must not keep a backup from being read for years. */
function isDue({ dataVerified }: Verifiable, now: Date, olderThanMs: number): boolean {
  if (dataVerified === null || dataVerified === undefined) return true;
  const ageMs = now.getTime() - Date.parse(dataVerified.at);
  return ageMs >= olderThanMs || ageMs < 0;
}

function compare(one: Verifiable, other: Verifiable): number {
  const ranks = [
    (one.dataVerified?.at ?? '').localeCompare(other.dataVerified?.at ?? ''),
    one.pointInTime.localeCompare(other.pointInTime),
    one.storage.localeCompare(other.storage),
    one.directory.localeCompare(other.directory),
  ];
  return ranks.find((rank) => rank !== 0) ?? 0;
}
