import { formatBytes } from '../common/units.ts';
import { StorageError } from './errors.ts';

/** Less is not worth another look. */
const lookBytesMin = 1024 * 1024;
/** So much may come in unseen, where others write, too. */
const lookBytesMax = 1024 * 1024 * 1024;

/** What a quota is kept over. */
export interface QuotaOptions {
  /** Name of the storage. */
  readonly name: string;
  readonly quotaBytes: number;
  /** Looks how much the storage holds, of all its writers. */
  readonly measure: () => Promise<number>;
  /** What to do when there is no room. */
  readonly hint: string;
}

/**
 * Keeps a storage within its quota. Others write into it, too, and may remove something: what it holds is looked at,
 * again and again, and never only counted.
 */
export class Quota {
  readonly quotaBytes: number;
  readonly #options: QuotaOptions;
  /** What it held at the last look, and what has been added since; `null`: nobody has looked. */
  #storedBytes: number | null = null;
  /** Of that, what a look does not see before it is whole. */
  #underWayBytes = 0;
  #untilLookBytes = 0;

  constructor(options: QuotaOptions) {
    this.quotaBytes = options.quotaBytes;
    this.#options = options;
  }

  /** Looks how much the storage holds. */
  async look(): Promise<number> {
    const bytes = await this.#options.measure();
    this.#storedBytes = bytes + this.#underWayBytes;
    this.#untilLookBytes = this.lookAgainBytes(bytes);
    return bytes;
  }

  /** After how much more it must be looked again. */
  lookAgainBytes(storedBytes: number): number {
    return Math.min(lookBytesMax, Math.max(lookBytesMin, (this.quotaBytes - storedBytes) / 2));
  }

  /** Before something is added. @throws StorageError QUOTA_EXCEEDED where there is no room for it */
  async take(bytes: number): Promise<void> {
    await this.#take(bytes, 0);
  }

  /**
   * Has something added that nobody sees before it is whole: until then it counts beside what a look finds.
   * @throws StorageError QUOTA_EXCEEDED where there is no room for it; what `add` rejects with
   */
  async during<T>(bytes: number, add: () => Promise<T>): Promise<T> {
    await this.#take(bytes, bytes);
    try {
      return await add();
    } finally {
      this.#underWayBytes -= bytes;
    }
  }

  async #take(bytes: number, underWayBytes: number): Promise<void> {
    this.#untilLookBytes -= bytes;
    const before = this.#storedBytes;
    if (before === null || this.#untilLookBytes <= 0 || before + bytes > this.quotaBytes) await this.look();
    const stored = this.#storedBytes ?? 0;
    if (stored + bytes > this.quotaBytes) throw this.#exceeded(stored, bytes);
    this.#storedBytes = stored + bytes;
    this.#underWayBytes += underWayBytes;
  }

  /** After something was added. Returns what the storage holds. @throws StorageError QUOTA_EXCEEDED */
  async requireKept(): Promise<number> {
    const stored = await this.look();
    if (stored > this.quotaBytes) throw this.#exceeded(stored, 0);
    return stored;
  }

  #exceeded(storedBytes: number, bytes: number): StorageError {
    const { name, hint } = this.#options;
    return quotaError(name, { storedBytes, quotaBytes: this.quotaBytes, neededBytes: bytes }, hint);
  }
}

/** A storage that has no room within its quota. */
export function quotaError(
  name: string,
  space: { readonly storedBytes: number; readonly quotaBytes: number; readonly neededBytes: number },
  hint: string,
): StorageError {
  const { storedBytes, quotaBytes, neededBytes } = space;
  const more = neededBytes === 0 ? '' : `; ${formatBytes(neededBytes)} more would pass it`;
  return new StorageError(
    'QUOTA_EXCEEDED',
    `storage ${name} holds ${formatBytes(storedBytes)} of its quota of ${formatBytes(quotaBytes)}${more}`,
    { hint },
  );
}

/** How room is made in a storage, or more of it allowed. */
export function quotaHint(name: string, kind: 'directory' | 'repository'): string {
  const collect = kind === 'repository' ? `, then stillpoint storage gc ${name}` : '';
  return `stillpoint prune, or stillpoint delete BACKUP${collect}; or a larger quota in storages.${name}`;
}
