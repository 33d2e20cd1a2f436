import { lineageHead } from './retain/lineage.ts';
import { StillpointError, type ErrorRecord, errorRecord } from '../common/errors.ts';
import { lockedNow } from '../storage/backupLock.ts';
import type { BackupEntry, HostBackupEntry, Storage } from '../storage/storage.ts';
import type { Hypervisor, MachineSummary } from './hypervisor/hypervisor.ts';
import type { Repositories } from './repositories.ts';

/** A backup that was found in a storage. */
export interface FoundBackup {
  /** `null` when its manifest cannot be read. */
  readonly id: string | null;
  /** T1, RFC 3339. */
  readonly pointInTime: string;
  readonly mode: string | null;
  /** Of the host that made it. */
  readonly host: string | null;
  readonly lockedUntil: string | null;
  /** Why it cannot be restored as it is; `null`: nothing is wrong with its structure. */
  readonly problem: string | null;
}

/**
 * Whether a machine of the backups is on this host: `here`; `name-taken`: another one has its name; `elsewhere`: it is
 * not; `unknown`: libvirt could not be asked, or the backups do not tell which machine it is.
 */
export type Presence = 'here' | 'name-taken' | 'elsewhere' | 'unknown';

/** A machine that has backups in a storage. */
export interface FoundMachine {
  readonly name: string;
  readonly uuid: string | null;
  readonly presence: Presence;
  /**
   * Of a machine that is here: the id of the backup that the next one starts from; `null` where none can be, because
   * libvirt knows no checkpoint of it: the next one reads everything. `undefined` for all others.
   */
  readonly nextStartsFrom: string | null | undefined;
  /** Oldest first. */
  readonly backups: readonly FoundBackup[];
}

/** What is in a storage that this host has not made itself, or not as it is now. */
export interface StorageFinds {
  readonly kind: Storage['kind'];
  readonly location: string;
  readonly machines: readonly FoundMachine[];
  /** Backups of the definitions of hosts, oldest first. */
  readonly hosts: readonly HostBackupEntry[];
  /** Damage that is of no backup alone: packs, by what is wrong with them. */
  readonly problems: readonly string[];
  /** In what the configuration of this host does not fit to the storage. */
  readonly differences: readonly string[];
  /** Why it cannot be told which of the machines are on this host. */
  readonly hypervisorProblem: ErrorRecord | null;
}

/**
 * Looks through a storage with the keys at hand, and compares what is there with this host. Writes nothing, neither there
 * nor here: there is no catalogue but the storage itself. The structure of each backup is checked, not every byte.
 *
 * @throws StorageError, RepositoryError when it cannot be opened or listed
 */
export async function importStorage(
  storage: Storage,
  { repositories, hypervisor }: { readonly repositories: Repositories; readonly hypervisor: Hypervisor },
): Promise<StorageFinds> {
  const entries = await storage.list();
  const { problems, problemOf } =
    storage.kind === 'repository'
      ? await checkRepository(storage, repositories)
      : { problems: [], problemOf: await checkDirectory(storage, entries) };
  const { present, problem } = await machinesHere(hypervisor);
  const machines: FoundMachine[] = [];
  for (const group of Map.groupBy(entries, ({ machine }) => machine.uuid ?? machine.name).values()) {
    const presence = presenceOf(group, present);
    machines.push({
      ...nameOf(group),
      presence,
      nextStartsFrom: presence === 'here' ? await headOf(group, hypervisor) : undefined,
      backups: group.map((entry) => describe(entry, problemOf(entry))),
    });
  }
  const { kind, location } = storage;
  const differences = kind === 'repository' ? await repositories.differences(storage.name) : [];
  const hosts = await storage.hostBackups();
  const byName = machines.toSorted((one, other) => one.name.localeCompare(other.name));
  return { kind, location, machines: byName, hosts, problems, differences, hypervisorProblem: problem };
}

type ProblemOf = (entry: BackupEntry) => string | null;

async function checkRepository(
  { name }: Storage,
  repositories: Repositories,
): Promise<{ readonly problems: readonly string[]; readonly problemOf: ProblemOf }> {
  const report = await repositories.verify(name, { data: false, readOnly: true });
  const found = new Map(report.backups.map(({ id, problems }) => [id, problems]));
  const packs = report.damagedPacks.map(({ id, reason }) => `pack ${id.toString('hex')}: ${reason}`);
  const problemOf: ProblemOf = ({ id, problem }) => {
    const own = found.get(id ?? '') ?? [];
    return problem ?? (own.length === 0 ? null : own.join('; '));
  };
  return { problems: packs, problemOf };
}

async function checkDirectory(storage: Storage, entries: readonly BackupEntry[]): Promise<ProblemOf> {
  const found = new Map<BackupEntry, string>();
  for (const entry of entries) {
    if (entry.problem !== null) continue;
    const report = await storage.verify(entry, { data: false });
    const wrong = report.files.filter(({ verdict }) => verdict !== 'ok');
    if (wrong.length > 0)
      found.set(entry, wrong.map(({ file, verdict, detail }) => `${file}: ${detail ?? verdict}`).join('; '));
  }
  return (entry) => entry.problem ?? found.get(entry) ?? null;
}

/** Restoring to files needs no libvirt, so that is told and ends nothing. */
async function machinesHere(
  hypervisor: Hypervisor,
): Promise<{ readonly present: readonly MachineSummary[] | null; readonly problem: ErrorRecord | null }> {
  try {
    return { present: await hypervisor.machines(), problem: null };
  } catch (error) {
    if (!(error instanceof StillpointError)) throw error;
    return { present: null, problem: errorRecord(error) };
  }
}

function nameOf(entries: readonly BackupEntry[]): Pick<FoundMachine, 'name' | 'uuid'> {
  // Names change; the newest one counts.
  const { name, uuid } = entries.at(-1)?.machine ?? { name: 'unknown', uuid: null };
  return { name, uuid };
}

function presenceOf(entries: readonly BackupEntry[], present: readonly MachineSummary[] | null): Presence {
  const { name, uuid } = nameOf(entries);
  if (present === null || uuid === null) return 'unknown';
  if (present.some((machine) => machine.uuid === uuid)) return 'here';
  return present.some((machine) => machine.name === name) ? 'name-taken' : 'elsewhere';
}

async function headOf(entries: readonly BackupEntry[], hypervisor: Hypervisor): Promise<string | null> {
  const { uuid } = nameOf(entries);
  const checkpoints = uuid === null ? [] : await hypervisor.checkpoints(uuid);
  return lineageHead(entries, checkpoints)?.manifest.id ?? null;
}

function describe(entry: BackupEntry, problem: string | null): FoundBackup {
  const { id, pointInTime, manifest } = entry;
  const about = { id, pointInTime, mode: manifest?.mode ?? null, host: manifest?.host.name ?? null };
  return { ...about, lockedUntil: lockedNow(entry, new Date()), problem };
}
