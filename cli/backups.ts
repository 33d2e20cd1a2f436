import type { Agent } from '../agent/agent.ts';
import type { OnUnreachable } from '../agent/storedBackups.ts';
import { errorRecord } from '../common/errors.ts';
import { lockedNow } from '../storage/backupLock.ts';
import type { ManifestVolume } from '../storage/manifest.ts';
import type { BackupEntry } from '../storage/storage.ts';
import type { Verification } from '../storage/verification.ts';
import type { Cli } from './cli.ts';
import { type ExitCode, exitCodeOf } from './exitCodes.ts';

/** One copy of a backup in one storage. */
export interface BackupCopy {
  readonly name: string;
  readonly directory: string;
  /** It stands on the file system that holds the machine's images. */
  readonly local: boolean;
  readonly state: BackupEntry['state'];
  readonly problem: string | null;
  readonly protected: boolean;
  readonly protectedReason: string | null;
  /** Nobody can delete it before, RFC 3339; `null`: it is not locked, or not any more. */
  readonly lockedUntil: string | null;
  /** What came of starting it in isolation, the last time. */
  readonly verified: Verification | null;
}

/** A backup with all its copies. */
export interface Backup {
  /** The first copy that can be restored, otherwise the first. */
  readonly entry: BackupEntry;
  readonly entries: readonly BackupEntry[];
  readonly state: BackupEntry['state'];
  readonly storages: readonly BackupCopy[];
  /** Every copy goes with the machine's own file system. */
  readonly localOnly: boolean;
}

/** Brings the copies of each backup together, in the order of the entries. What has no id stands alone. */
export async function gatherBackups(
  agent: Agent,
  entries: readonly BackupEntry[],
): Promise<readonly Backup[]> {
  const groups = new Map<string, BackupEntry[]>();
  for (const entry of entries) {
    const key = entry.id ?? `${entry.storage}:${entry.directory}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [entry]);
    else group.push(entry);
  }
  return Promise.all([...groups.values()].map((group) => backupOf(agent, group)));
}

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

async function backupOf(agent: Agent, entries: readonly BackupEntry[]): Promise<Backup> {
  const entry = entries.find(({ state }) => state === 'Active') ?? entries[0];
  if (entry === undefined) throw new Error('a backup without a copy');
  const storages = await Promise.all(
    entries.map(async (copy): Promise<BackupCopy> => {
      const { storage: name, directory, state, problem, protected: isProtected, protectedReason } = copy;
      const { verified = null } = copy;
      const local = await agent.backups.isLocal(copy);
      const lockedUntil = lockedNow(copy, new Date());
      const shield = { protected: isProtected, protectedReason, lockedUntil };
      return { name, directory, local, state, problem, ...shield, verified };
    }),
  );
  return { entry, entries, state: entry.state, storages, localOnly: storages.every(({ local }) => local) };
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

/** The fields of the manifest, and `state`, `problem`, `protected` and `storages` beside them. */
export function backupJson({ entry, state, storages }: Backup): Readonly<Record<string, unknown>> {
  const { id, machine, pointInTime, manifest, problem } = entry;
  const isProtected = storages.some((copy) => copy.protected);
  return { ...(manifest ?? { id, machine, pointInTime }), state, problem, protected: isProtected, storages };
}

/** What a backup takes in its storage. */
export function storedBytes(entry: BackupEntry): number | null {
  const { manifest } = entry;
  if (manifest === null) return null;
  const sizes = [
    ...manifest.volumes.map((volume) => volume.storedBytes),
    ...manifest.extras.map((extra) => extra.sizeBytes),
  ];
  return sizes.reduce((sum, size) => sum + size, manifest.memory?.sizeBytes ?? 0);
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
