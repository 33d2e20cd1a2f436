import { type ErrorRecord, errorRecord, StillpointError } from '../../common/errors.ts';
import type { BackupEntry, Storage } from '../../storage/storage.ts';
import { stateOfStorage, type StorageState } from '../storageStates.ts';
import { referencedBytesOf } from '../storageUsage.ts';

/** What a machine has in a storage. */
export interface StoredMachine {
  readonly uuid: string;
  readonly name: string;
  readonly backups: number;
  /** The newest that can be restored. */
  readonly newest: {
    readonly backupId: string;
    readonly atMs: number;
    /** What it would take without deduplication and compression. */
    readonly referencedBytes: number;
  } | null;
  /** When one of its backups was last verified (every byte read, or started) and found good. */
  readonly verifiedAtMs: number | null;
  /** The newest backup whose last verification found it not good. */
  readonly failedVerification: { readonly backupId: string; readonly atMs: number } | null;
}

/** What was seen of a storage. Where it does not answer, `machines` and the sizes are those of the look before. */
export interface StorageLook {
  readonly name: string;
  /** When it was looked at; what backups it has was found out then or before, see `listedAtMs`. */
  readonly atMs: number;
  readonly state: StorageState;
  readonly warnPercent: number;
  /** Since when it cannot be used; null: it can. */
  readonly unusableSinceMs: number | null;
  /** null: it has never answered. */
  readonly listedAtMs: number | null;
  readonly machines: ReadonlyMap<string, StoredMachine>;
  readonly backups: number | null;
  /** Backups that cannot be restored as they are. */
  readonly damagedBackups: number | null;
  readonly problem: ErrorRecord | null;
}

/**
 * Looks at a storage: whether it can be used, its room, and what it holds of each machine. Never rejects for a storage
 * that is out of order.
 * @param before what was seen the last time
 */
export async function lookAtStorage(
  storage: Storage,
  before: StorageLook | undefined,
  now: () => number,
): Promise<StorageLook> {
  const atMs = now();
  const state = await stateOfStorage(storage);
  const about = { name: storage.name, atMs, warnPercent: storage.bounds.warnPercent };
  if (!state.ok) return unusable(about, state, before, state.problem);
  try {
    const contents = contentsOf(await storage.list());
    return { ...about, state, unusableSinceMs: null, listedAtMs: atMs, ...contents, problem: null };
  } catch (error) {
    if (!(error instanceof StillpointError)) throw error;
    return unusable(about, state, before, errorRecord(error));
  }
}

function unusable(
  about: Pick<StorageLook, 'name' | 'atMs' | 'warnPercent'>,
  state: StorageState,
  before: StorageLook | undefined,
  problem: ErrorRecord | null,
): StorageLook {
  const { capacityBytes, freeBytes, storedBytes, quotaBytes, warning } = before?.state ?? state;
  return {
    ...about,
    state: { ...state, ok: false, problem, capacityBytes, freeBytes, storedBytes, quotaBytes, warning },
    unusableSinceMs: before?.unusableSinceMs ?? about.atMs,
    listedAtMs: before?.listedAtMs ?? null,
    machines: before?.machines ?? new Map(),
    backups: before?.backups ?? null,
    damagedBackups: before?.damagedBackups ?? null,
    problem,
  };
}

/** The little that is kept of entries, each of which holds a manifest. */
function contentsOf(
  entries: readonly BackupEntry[],
): Pick<StorageLook, 'machines' | 'backups' | 'damagedBackups'> {
  const machines = new Map<string, StoredMachine>();
  for (const entry of entries) {
    const { uuid, name } = entry.machine;
    if (uuid === null) continue;
    const before = machines.get(uuid) ?? emptyMachine(uuid, name);
    machines.set(uuid, withEntry(before, entry));
  }
  const damagedBackups = entries.filter(({ state }) => state !== 'Active').length;
  return { machines, backups: entries.length, damagedBackups };
}

function emptyMachine(uuid: string, name: string): StoredMachine {
  return { uuid, name, backups: 0, newest: null, verifiedAtMs: null, failedVerification: null };
}

/** Entries come oldest first. */
function withEntry(machine: StoredMachine, entry: BackupEntry): StoredMachine {
  const { id, state, pointInTime, manifest } = entry;
  const { goodAtMs, badAtMs } = verificationsOf(entry);
  const isGood = id !== null && state === 'Active' && manifest !== null;
  return {
    ...machine,
    name: entry.machine.name,
    backups: machine.backups + 1,
    newest: isGood
      ? { backupId: id, atMs: Date.parse(pointInTime), referencedBytes: referencedBytesOf(manifest) }
      : machine.newest,
    verifiedAtMs: laterOf(machine.verifiedAtMs, goodAtMs),
    failedVerification:
      id === null || badAtMs === null ? machine.failedVerification : { backupId: id, atMs: badAtMs },
  };
}

function verificationsOf({ verified, dataVerified }: BackupEntry): {
  readonly goodAtMs: number | null;
  readonly badAtMs: number | null;
} {
  let goodAtMs: number | null = null;
  let badAtMs: number | null = null;
  for (const verification of [verified, dataVerified]) {
    if (verification === null || verification === undefined) continue;
    const atMs = Date.parse(verification.at);
    if (verification.ok) goodAtMs = laterOf(goodAtMs, atMs);
    else badAtMs = laterOf(badAtMs, atMs);
  }
  return { goodAtMs, badAtMs };
}

/** The later of two instants, of which each may be unknown. */
export function laterOf(one: number | null, other: number | null): number | null {
  if (one === null || other === null) return one ?? other;
  return Math.max(one, other);
}
