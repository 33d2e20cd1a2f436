import { hostname } from 'node:os';
import { RepositoryError } from '../storage/repository/errors.ts';
import { makeKeyFile, readKeyFile } from '../storage/repository/keyFile.ts';
import type { Secret } from '../storage/repository/keySlot.ts';
import type { StoredSlot } from '../storage/repository/keySlots.ts';
import { formatRecoveryKey, newRecoveryKey } from '../storage/repository/recoveryKey.ts';
import { Repository } from '../storage/repository/repository.ts';
import type { RepositoryPlaces } from './repositoryPlaces.ts';
import { openOptionsOf } from './storages.ts';

/** What opens a repository again, with the recovery key or a passphrase. */
export interface RecoveredKey {
  readonly keyFile: string;
  readonly keyFileMade: boolean;
  readonly slotId: string;
  /** Slots of the key file that this host had before: whoever has found it opens the repository by them. */
  readonly lostSlotIds: readonly string[];
}

/** A slot as a host sees it. */
export interface ListedSlot extends StoredSlot {
  /** The key file of this host opens it. */
  readonly isOwn: boolean;
}

/** What a rotation did. */
export interface RotatedKeys {
  /** Number of the keys that are used from now on. */
  readonly generation: number;
  /** Opened the repository before, and do so no more; without this host's key file. */
  readonly closed: readonly ListedSlot[];
  /** Where there was one before: as it is printed, this once. */
  readonly recoveryKey: string | null;
}

/** How the slot of a host's key file is called. */
export function keyFileLabel(): string {
  return `key file of ${hostname()}`;
}

/** What whoever has a key may do: everything unless told. */
export interface KeyAccess {
  readonly access?: 'write' | undefined;
}

const recoveryLabel = 'recovery key';

function requireReading({ context }: Repository): void {
  context.keys.requireReading(context.storage);
}

/** Makes the slot of a key file. One that reads by another slot would not be kept from reading. */
async function addKeyFile(
  repository: Repository,
  secret: Secret,
  { path, label, access }: KeyAccess & { readonly path: string; readonly label: string },
): Promise<string> {
  const { slots, context } = repository;
  if (access === 'write') {
    const opened = await slots.openedBy(secret);
    const reads = ({ slotId, slot }: StoredSlot): boolean =>
      opened.includes(slotId) && slot?.access === undefined;
    const reader = (await slots.list()).find(reads);
    if (reader !== undefined)
      throw new RepositoryError(
        'KEY_SLOT_IN_USE',
        `${path} reads storage ${context.storage} already, by key slot ${reader.slotId}`,
        {
          hint: `name a file that is not there yet, and it is made; or first: stillpoint storage keys ${context.storage} --remove ${reader.slotId}`,
        },
      );
  }
  return slots.add(secret, { label, access, createdAt: new Date().toISOString() });
}

/** Lets a new recovery key open a repository. Returns it as it is printed, this once. */
export async function addRecoveryKey(repository: Repository, createdAt: string): Promise<string> {
  const key = newRecoveryKey();
  await repository.slots.add({ kind: 'recovery', key }, { label: recoveryLabel, createdAt });
  return formatRecoveryKey(key);
}

/** What opens the repositories of a host: key files, recovery keys, passphrases. */
export class RepositoryKeys {
  readonly #places: RepositoryPlaces;

  constructor(places: RepositoryPlaces) {
    this.#places = places;
  }

  /** All slots, and which of them this host's key file opens. */
  async list(name: string): Promise<readonly ListedSlot[]> {
    const { repository, settings } = await this.#places.open(name);
    const own = await repository.slots.openedBy(await readKeyFile(settings.keyFile, name));
    const slots = await repository.slots.list();
    return slots.map((slot) => ({ ...slot, isOwn: own.includes(slot.slotId) }));
  }

  /** Makes another recovery key, which is told this once. */
  async addRecoveryKey(name: string): Promise<string> {
    const { repository } = await this.#places.open(name);
    requireReading(repository);
    return addRecoveryKey(repository, new Date().toISOString());
  }

  /**
   * Lets another key file open it, which is made where there is none.
   * @throws RepositoryError KEY_WRITE_ONLY, KEY_SLOT_IN_USE (it is to write only, and reads already)
   */
  async addFile(name: string, path: string, { access }: KeyAccess): Promise<void> {
    const { repository } = await this.#places.open(name);
    if (access === undefined) requireReading(repository);
    const secret = (await makeKeyFile(path)) ?? (await readKeyFile(path, name));
    await addKeyFile(repository, secret, { path, label: path, access });
  }

  /** Lets a passphrase open it, by which the key file can be made anew. */
  async addPassphrase(name: string, passphrase: string): Promise<void> {
    const { repository } = await this.#places.open(name);
    requireReading(repository);
    const secret = { kind: 'passphrase', passphrase } as const;
    await repository.slots.add(secret, { label: 'passphrase', createdAt: new Date().toISOString() });
  }

  /** Slots that a rotation would close: all but those of this host's key file. */
  async others(name: string): Promise<readonly ListedSlot[]> {
    requireReading((await this.#places.open(name)).repository);
    return (await this.list(name)).filter(({ isOwn }) => !isOwn);
  }

  /**
   * Makes new keys, which this host's key file opens, and a new recovery key where there was one; nothing else does.
   * Who has opened the repository before can read what was written until now, and not what is written from now on.
   */
  async rotate(name: string): Promise<RotatedKeys> {
    const closed = await this.others(name);
    const { repository, settings } = await this.#places.open(name);
    const own = { secret: await readKeyFile(settings.keyFile, name), label: keyFileLabel() };
    const key = closed.some(({ slot }) => slot?.kind === 'recovery') ? newRecoveryKey() : null;
    const recovery =
      key === null ? [] : [{ secret: { kind: 'recovery', key } as const, label: recoveryLabel }];
    const { config } = await repository.rotate([own, ...recovery], { createdAt: new Date().toISOString() });
    return {
      generation: config.keyGeneration,
      closed,
      recoveryKey: key === null ? null : formatRecoveryKey(key),
    };
  }

  /**
   * Lets the configured key file open it again, which is made where there is none.
   * @param secret the recovery key or a passphrase
   * @throws RepositoryError KEY_WRONG, KEY_SLOT_IN_USE (it is to write only, and reads already)
   */
  async recover(name: string, secret: Secret, { access }: KeyAccess): Promise<RecoveredKey> {
    const settings = this.#places.settings(name);
    const backend = await this.#places.backend(name);
    const repository = await Repository.open(backend, secret, openOptionsOf(name, settings));
    const before = await repository.slots.list();
    const { keyFile } = settings;
    const made = await makeKeyFile(keyFile);
    const label = keyFileLabel();
    const key = made ?? (await readKeyFile(keyFile, name));
    const slotId = await addKeyFile(repository, key, { path: keyFile, label, access });
    const lost = before.filter(({ slot }) => slot?.kind === 'keyFile' && slot.label === label);
    return { keyFile, keyFileMade: made !== null, slotId, lostSlotIds: lost.map((slot) => slot.slotId) };
  }

  /**
   * Has a slot open the repository no more.
   * @param options.force also the one that this host opens it by
   * @throws RepositoryError KEY_SLOT_NOT_FOUND, KEY_SLOT_LAST, KEY_SLOT_IN_USE, KEY_WRITE_ONLY
   */
  async remove(name: string, slotId: string, options: { readonly force: boolean }): Promise<void> {
    const { repository, settings } = await this.#places.open(name);
    requireReading(repository);
    const { slots } = repository;
    const own = await slots.openedBy(await readKeyFile(settings.keyFile, name));
    if (!options.force && own.length === 1 && own[0] === slotId)
      throw new RepositoryError(
        'KEY_SLOT_IN_USE',
        `this host opens storage ${name} by key slot ${slotId} (${settings.keyFile})`,
        {
          hint: `its backups into ${name} would fail from now on; to remove it all the same: stillpoint storage keys ${name} --remove ${slotId} --force`,
        },
      );
    await slots.remove(slotId);
  }
}
