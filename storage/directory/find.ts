import { parsePointInTime } from '../../common/time.ts';
import { StorageError } from '../errors.ts';
import type { BackupEntry } from '../storage.ts';

/** The hint where nothing better is known. */
export const listHint = 'stillpoint list';

/** Below this, the beginning of an id (which starts with its time) says too little. */
const minPrefixLength = 8;

/**
 * Picks the one backup that a text means: an id, the beginning of one, `MACHINE@latest`, `MACHINE@T1`.
 *
 * @param entries sorted by point in time
 * @throws StorageError BACKUP_NOT_FOUND, BACKUP_AMBIGUOUS
 */
export function selectEntry(entries: readonly BackupEntry[], idOrName: string): BackupEntry {
  const [machine, time] = splitAt(idOrName);
  const found = time === undefined ? withId(entries, idOrName.toLowerCase()) : atTime(entries, machine, time);
  const [first, ...others] = found;
  if (first === undefined) {
    throw new StorageError('BACKUP_NOT_FOUND', `there is no backup ${idOrName}`, {
      hint: hintFor(entries, idOrName),
    });
  }
  if (others.length > 0) {
    const names = found.map((entry) => entry.id ?? entry.directory);
    throw new StorageError('BACKUP_AMBIGUOUS', `${idOrName} can be any of: ${names.join(', ')}`, {
      hint: 'name it by its whole id, or use the UUID of the machine',
    });
  }
  return first;
}

/** What stands after `@` and is no instant is explained, and so is a machine where a backup is meant. */
function hintFor(entries: readonly BackupEntry[], idOrName: string): string {
  const isMachine = entries.some(({ machine }) => machine.name === idOrName || machine.uuid === idOrName);
  if (isMachine)
    return `${idOrName} is a machine; its newest backup is ${idOrName}@latest: stillpoint list ${idOrName}`;
  const [machine, time] = splitAt(idOrName);
  if (time === undefined || time === 'latest' || !Number.isNaN(instantOf(time).getTime())) return listHint;
  return `"${time}" is no instant: ${machine}@latest, or ${machine}@ with the T1 of a backup in UTC, such as 20261120T151523.123Z or 2026-11-20T15:15:23.123Z, as stillpoint list shows it`;
}

/** `MACHINE@TIME`; a name may have an `@`, too. */
function splitAt(idOrName: string): readonly [string, string | undefined] {
  const at = idOrName.lastIndexOf('@');
  return at === -1 ? [idOrName, undefined] : [idOrName.slice(0, at), idOrName.slice(at + 1)];
}

/** Not a number where the text says none. */
function instantOf(time: string): Date {
  return parsePointInTime(time) ?? new Date(time);
}

function withId(entries: readonly BackupEntry[], id: string): readonly BackupEntry[] {
  const exact = entries.filter((entry) => entry.id === id);
  if (exact.length > 0 || id.length < minPrefixLength) return exact;
  return entries.filter((entry) => entry.id?.startsWith(id) === true);
}

function atTime(entries: readonly BackupEntry[], machine: string, time: string): readonly BackupEntry[] {
  const ofMachine = entries.filter(
    (entry) => entry.machine.name === machine || entry.machine.uuid === machine,
  );
  if (time !== 'latest') {
    const wanted = instantOf(time);
    return ofMachine.filter((entry) => new Date(entry.pointInTime).getTime() === wanted.getTime());
  }
  const active = ofMachine.filter((entry) => entry.state === 'Active');
  // Two machines may have had the same name: one "latest" for each of them.
  const latest = new Map(active.map((entry) => [entry.machine.uuid, entry]));
  return [...latest.values()];
}
