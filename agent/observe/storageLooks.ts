import type { Storage } from '../../storage/storage.ts';
import { lookAtStorage, type StorageLook } from './storageLook.ts';

/**
 * What was seen of the storages, looked at anew only now and then: to ask one may mean to list a bucket. A storage that
 * keeps its caller waiting holds up nobody but itself.
 */
export class StorageLooks {
  readonly #storages: () => ReadonlyMap<string, Storage>;
  readonly #everyMs: number;
  readonly #now: () => number;
  readonly #looks = new Map<string, StorageLook>();
  readonly #atHand = new Map<string, Promise<void>>();
  /** What no storage is to blame for. */
  #failure: unknown;

  /** @param storages those of the configuration, which may be others from one look to the next */
  constructor(
    storages: () => ReadonlyMap<string, Storage>,
    { everyMs, now }: { readonly everyMs: number; readonly now: () => number },
  ) {
    this.#storages = storages;
    this.#everyMs = everyMs;
    this.#now = now;
  }

  /**
   * Begins the looks that are due, and waits for all that are at hand, but not longer than `patienceMs`.
   * @throws what a look has thrown that was no storage's fault
   */
  async renew(patienceMs: number): Promise<void> {
    for (const storage of this.#storages().values()) this.#begin(storage);
    if (this.#atHand.size > 0 && patienceMs > 0) await this.#wait(patienceMs);
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure !== undefined) throw failure;
  }

  /** Those of storages that have been looked at, in the order of the configuration. */
  all(): readonly StorageLook[] {
    return [...this.#storages().keys()].flatMap((name) => this.#looks.get(name) ?? []);
  }

  /** Names of the others. */
  unseen(): readonly string[] {
    return [...this.#storages().keys()].filter((name) => !this.#looks.has(name));
  }

  #begin(storage: Storage): void {
    const { name } = storage;
    const before = this.#looks.get(name);
    const isDue = before === undefined || Math.abs(this.#now() - before.atMs) >= this.#everyMs;
    if (!isDue || this.#atHand.has(name)) return;
    this.#atHand.set(name, this.#look(storage, before));
  }

  /** Never rejects. */
  async #look(storage: Storage, before: StorageLook | undefined): Promise<void> {
    try {
      this.#looks.set(storage.name, await lookAtStorage(storage, before, this.#now));
    } catch (error) {
      this.#failure = error;
    }
    this.#atHand.delete(storage.name);
  }

  async #wait(patienceMs: number): Promise<void> {
    const { promise: over, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, patienceMs);
    await Promise.race([over, Promise.all(this.#atHand.values())]);
    clearTimeout(timer);
  }
}
