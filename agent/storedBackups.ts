import { StillpointError } from '../common/errors.ts';
import { exists } from '../common/files.ts';
import { storageLines } from '../config/config.ts';
import { ConfigError } from '../config/errors.ts';
import { listHint } from '../storage/directory/find.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';

/** Hears of a storage that does not answer. */
export type OnUnreachable = (storage: string, error: unknown) => void;

/** The backups in all storages of an agent. */
export class StoredBackups {
  readonly #storages: ReadonlyMap<string, Storage>;
  readonly #configPath: string;

  constructor(parts: { readonly storages: ReadonlyMap<string, Storage>; readonly configPath: string }) {
    this.#storages = parts.storages;
    this.#configPath = parts.configPath;
  }

  /**
   * All backups of all storages, or of one machine, oldest first.
   * @throws ConfigError NO_STORAGE: nothing could be looked at
   * @param onUnreachable is told of a storage that does not answer, which then hides no other one; may throw
   */
  async list(machine: string | undefined, onUnreachable: OnUnreachable): Promise<readonly BackupEntry[]> {
    if (this.#storages.size === 0) throw noStorage(this.#configPath);
    const entries: BackupEntry[] = [];
    for (const storage of this.#storages.values()) {
      try {
        entries.push(...(await storage.list({ machine })));
      } catch (error) {
        onUnreachable(storage.name, error);
      }
    }
    return entries.toSorted((a, b) => a.pointInTime.localeCompare(b.pointInTime));
  }

  /**
   * One backup by id, `MACHINE@latest` or `MACHINE@T1`, from the first storage that has it; of several latest
   * ones the newest.
   * @param only the storages to look in
   * @throws StorageError BACKUP_NOT_FOUND, BACKUP_AMBIGUOUS
   */
  async find(reference: string, only?: readonly string[]): Promise<BackupEntry> {
    let found: BackupEntry | undefined;
    const failures: unknown[] = [];
    for (const storage of this.#storages.values()) {
      if (only !== undefined && !only.includes(storage.name)) continue;
      try {
        const entry = await storage.find(reference);
        if (found === undefined || entry.pointInTime > found.pointInTime) found = entry;
      } catch (error) {
        // A storage that is out of order must not hide a backup that another one has.
        if (!(error instanceof StillpointError) || error.code === 'BACKUP_AMBIGUOUS') throw error;
        failures.push(error);
      }
    }
    if (found !== undefined) return found;
    const worse = failures.find(
      (error) => error instanceof StillpointError && error.code !== 'BACKUP_NOT_FOUND',
    );
    // One that knows the machine says more.
    const plain = failures.find((error) => error instanceof StillpointError && error.hint !== listHint);
    throw worse ?? plain ?? failures[0] ?? noStorage(this.#configPath);
  }

  /**
   * The same to be read: of its copies one that this host can read and that was not seen damaged, if there is one.
   * @throws StorageError BACKUP_NOT_FOUND, BACKUP_AMBIGUOUS
   */
  async findReadable(reference: string): Promise<BackupEntry> {
    const found = await this.find(reference);
    const readable: BackupEntry[] = [];
    for (const copy of [found, ...(await this.#otherCopies(found))]) {
      if (!(await this.#reads(copy.storage))) continue;
      if (copy.dataVerified?.ok !== false) return copy;
      readable.push(copy);
    }
    return readable[0] ?? found;
  }

  /** Whole ones, as far as is known; storages that do not answer are passed over. */
  async #otherCopies({ id, storage }: BackupEntry): Promise<readonly BackupEntry[]> {
    if (id === null) return [];
    const entries = await this.list(undefined, () => undefined);
    return entries.filter((copy) => copy.id === id && copy.storage !== storage && copy.state === 'Active');
  }

  /** Of one that does not answer this says no: there may be a copy in another one. */
  async #reads(name: string): Promise<boolean> {
    try {
      await this.#storages.get(name)?.requireReading();
      return true;
    } catch (error) {
      if (error instanceof StillpointError) return false;
      throw error;
    }
  }

  /**
   * Copies of a machine's backups that are newer than this one and cannot be restored: `MACHINE@latest` names the
   * newest that can, and whoever asked must know what it passes over.
   */
  async damagedAfter(entry: BackupEntry, onUnreachable: OnUnreachable): Promise<readonly BackupEntry[]> {
    const { uuid, name } = entry.machine;
    const entries = await this.list(name, onUnreachable);
    return entries.filter(
      ({ state, pointInTime, machine }) =>
        state !== 'Active' &&
        pointInTime > entry.pointInTime &&
        // One whose manifest cannot be read is known by its directory only.
        (machine.uuid ?? uuid) === uuid,
    );
  }

  /** True when a backup stands on the file system that holds the images it was made of, as they are now. */
  async isLocal(entry: BackupEntry): Promise<boolean> {
    const storage = this.#storages.get(entry.storage);
    if (storage === undefined) return false;
    for (const { source } of entry.manifest?.volumes ?? [])
      if (!(await exists(source)) || !(await storage.isOnDeviceOf(source))) return false;
    return entry.manifest !== null;
  }
}

/** Where no storage is configured, nothing can be stored or looked at. */
export function noStorage(configPath: string): ConfigError {
  return new ConfigError('NO_STORAGE', 'no storage is configured', { hint: storageLines(configPath) });
}
