import type { Agent } from '../agent/agent.ts';
import { backupOf, type StoredBackup as Backup } from '../agent/backupCopies.ts';
import type { OnUnreachable } from '../agent/storedBackups.ts';
import { errorRecord } from '../common/errors.ts';
import { StorageError } from '../storage/errors.ts';
import type { ManifestVolume } from '../storage/manifest.ts';
import type { BackupEntry } from '../storage/storage.ts';
import type { Cli } from './cli.ts';
import { type ExitCode, exitCodeOf } from './exitCodes.ts';

export {
  type BackupCopy,
  gatherBackups,
  type StoredBackup as Backup,
  storedBytes,
} from '../agent/backupCopies.ts';

/** The backup with all its copies that an entry is one of. */
export async function backupOfEntry(
  agent: Agent,
  entry: BackupEntry,
  onUnreachable: OnUnreachable,
): Promise<Backup> {
  const { id } = entry;
  if (id === null) return backupOf(agent, [entry]);
  const copies = await agent.backups.list(undefined, onUnreachable);
  const others = copies.filter((copy) => copy.id === id && copy.storage !== entry.storage);
  return backupOf(agent, [entry, ...others]);
}

/**
 * The backup that somebody means. Tells of newer ones that are damaged, which `MACHINE@latest` passes over.
 * @throws StorageError BACKUP_NOT_FOUND, BACKUP_AMBIGUOUS
 */
export async function findBackup(
  { terminal }: Pick<Cli, 'terminal'>,
  backups: Pick<Agent['backups'], 'find' | 'damagedAfter'>,
  reference: string,
): Promise<BackupEntry> {
  const entry = await backups.find(reference);
  if (!reference.endsWith('@latest')) return entry;
  const passedOver = await backups.damagedAfter(entry, (storage, error) =>
    terminal.error(error, `storage ${storage}`),
  );
  for (const { storage, directory, problem } of passedOver)
    terminal.warning(
      `${reference} is ${entry.pointInTime}: the newer ${directory} in ${storage} is damaged (${problem ?? 'no reason is known'})`,
    );
  return entry;
}

/** A backup is there, and not in the storages that were named. */
export function noCopyIn(reference: string, storages: readonly string[]): StorageError {
  return new StorageError('BACKUP_NOT_FOUND', `${reference} has no copy in ${storages.join(', ')}`, {
    hint: `stillpoint show ${reference}`,
  });
}

/** Tells of storages that do not answer, and remembers with which code to end. */
export function tellUnreachable(cli: Cli): { readonly tell: OnUnreachable; code: ExitCode } {
  const told: { readonly tell: OnUnreachable; code: ExitCode } = {
    code: 0,
    tell: (storage, error) => {
      cli.terminal.error(error, `storage ${storage}`);
      told.code = exitCodeOf(errorRecord(error).code);
    },
  };
  return told;
}

/** Whether some copy of it may not be removed, for a table; empty if every one may. */
export function protectionRemark({ storages }: Backup): string {
  const holders = storages.filter((copy) => copy.protected);
  if (holders.length === storages.length) return 'protected';
  return holders.length === 0 ? '' : `protected in ${holders.map(({ name }) => name).join(', ')}`;
}

/** Until when some copy of it cannot be deleted, for a table; empty if every one can. */
export function lockRemark({ storages }: Backup): string {
  const ends = storages.flatMap(({ lockedUntil }) => lockedUntil ?? []).toSorted();
  const last = ends.at(-1);
  return last === undefined ? '' : `locked until ${last.slice(0, 10)}`;
}

/** Whether some copy of it was seen to work, the last time that somebody looked; empty if nobody has. */
export function verifiedRemark({ storages }: Backup): string {
  const looked = storages
    .flatMap(({ verified }) => verified ?? [])
    .toSorted((a, b) => a.at.localeCompare(b.at));
  const last = looked.at(-1);
  if (last === undefined) return '';
  const how = last.start === 'resume' ? 'resumes' : 'boots';
  return last.ok ? `${how} (${last.evidence ?? 'seen'})` : `was seen not to work on ${last.at.slice(0, 10)}`;
}

/** In which storages a copy was not what was stored when all of it was last read. */
export function damagedRemark({ entries }: Backup): string {
  const damaged = entries.filter(({ dataVerified }) => dataVerified?.ok === false);
  return damaged.map(({ storage }) => `${storage}: was seen damaged`).join('; ');
}

/** The fields of the manifest, and `state`, `problem`, `protected` and `storages` beside them. */
export function backupJson({ entry, state, storages }: Backup): Readonly<Record<string, unknown>> {
  const { id, machine, pointInTime, manifest, problem } = entry;
  const isProtected = storages.some((copy) => copy.protected);
  return { ...(manifest ?? { id, machine, pointInTime }), state, problem, protected: isProtected, storages };
}

/** The beginning of an id: the millisecond of its making, which names it wherever an id is asked for. */
export function shortId(id: string): string {
  return id.slice(0, 13);
}

/** How a volume was read, and why in full. */
export function howRead({ read, parent, reason }: ManifestVolume): string {
  if (read === 'increment') return `increment of ${shortId(parent ?? '')}`;
  return reason === undefined ? 'read in full' : `read in full: ${reason}`;
}
