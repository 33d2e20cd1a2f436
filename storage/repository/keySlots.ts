import { type Backend, type CallOptions, listAll } from '../backends/backend.ts';
import { damaged, RepositoryError } from './errors.ts';
import type { KeyRing } from './keyRing.ts';
import {
  formatSlot,
  type KeySlot,
  openSlot,
  parseSlot,
  type ScryptCost,
  type Secret,
  sealSlot,
} from './keySlot.ts';
import { keySlotBytesMax, keySlotsMax } from './limits.ts';
import { prefixes } from './names.ts';
import { createOnce } from './objects.ts';

/** A slot, or what is left of one. */
export interface StoredSlot {
  readonly slotId: string;
  /** `null` when it cannot be read: then it opens nothing. */
  readonly slot: KeySlot | null;
  /** Why it cannot be used. */
  readonly problem: string | null;
}

/** What a new slot is to be. */
export interface AddedSlot {
  readonly label: string;
  readonly createdAt: string;
  readonly cost?: ScryptCost | undefined;
  /** Everything unless told. */
  readonly access?: 'write' | undefined;
}

/** The ways into a repository. Slots are made and deleted, never changed. */
export class KeySlots {
  readonly #backend: Backend;
  readonly #repositoryId: string;
  readonly #keys: KeyRing;

  constructor(backend: Backend, repository: { readonly repositoryId: string }, keys: KeyRing) {
    this.#backend = backend;
    this.#repositoryId = repository.repositoryId;
    this.#keys = keys;
  }

  /**
   * Every key ring that a secret opens: more than one when a rotation ended half way, and it is the configuration
   * that says which one counts; those that read come first. Rejects with KEY_WRONG when there is none.
   */
  static async open(
    backend: Backend,
    repositoryId: string,
    secret: Secret,
    call: CallOptions & { readonly storage?: string | undefined } = {},
  ): Promise<readonly KeyRing[]> {
    const opened: KeyRing[] = [];
    const broken: RepositoryError[] = [];
    for (const { name } of (await listAll(backend, prefixes.keys, call)).slice(0, keySlotsMax)) {
      const slot = await readSlot(backend, name, call, broken);
      if (slot === null || slot.repositoryId !== repositoryId) continue;
      const ring = await openSlot(slot, secret);
      if (ring !== null) opened.push(ring);
    }
    if (opened.length > 0)
      return opened.toSorted((one, other) => Number(one.isWriter) - Number(other.isWriter));
    if (broken.length > 0) throw broken[0];
    throw new RepositoryError(
      'KEY_WRONG',
      `no key slot of the repository at ${backend.location} opens with this ${wordOf[secret.kind]}`,
      { hint: hintFor(secret, call.storage ?? 'NAME') },
    );
  }

  /** What there is, without any secret; damaged ones included, and they hide no others. */
  async list(call: CallOptions = {}): Promise<readonly StoredSlot[]> {
    const slots: StoredSlot[] = [];
    for (const { name } of await listAll(this.#backend, prefixes.keys, call)) {
      const slotId = slotIdOf(name);
      if (slotId === null) continue;
      const broken: RepositoryError[] = [];
      const slot = await readSlot(this.#backend, name, call, broken);
      const [failure] = broken;
      if (failure !== undefined) slots.push({ slotId, slot: null, problem: failure.message });
      else if (slot?.repositoryId === this.#repositoryId) slots.push({ slotId, slot, problem: null });
    }
    return slots;
  }

  /** Ids of the slots that a secret opens. */
  async openedBy(secret: Secret, call: CallOptions = {}): Promise<readonly string[]> {
    const opened: string[] = [];
    for (const { slotId, slot } of await this.list(call))
      if (slot !== null && (await openSlot(slot, secret)) !== null) opened.push(slotId);
    return opened;
  }

  /** Lets another secret open the repository. Returns the id of its slot. Rejects with KEY_WRITE_ONLY. */
  async add(secret: Secret, options: AddedSlot, call: CallOptions = {}): Promise<string> {
    const isWriter = options.access === 'write';
    if (!isWriter) this.#keys.requireReading();
    const ring = isWriter ? this.#keys.writer() : this.#keys;
    const slot = await sealSlot(ring, secret, { repositoryId: this.#repositoryId, ...options });
    const bytes = formatSlot(slot);
    const name = `${prefixes.keys}${slot.slotId}`;
    parseSlot(bytes, name);
    if ((await createOnce(this.#backend, name, [bytes], call)) === 'taken')
      throw damaged(name, 'its place is taken by something else');
    return slot.slotId;
  }

  /** Rejects with KEY_SLOT_NOT_FOUND, KEY_SLOT_LAST. */
  async remove(slotId: string, call: CallOptions = {}): Promise<void> {
    const slots = await this.list(call);
    const wanted = slots.find((slot) => slot.slotId === slotId);
    if (wanted === undefined) {
      throw new RepositoryError('KEY_SLOT_NOT_FOUND', `there is no key slot ${slotId}`, {
        hint: `the slots are: ${slots.map((slot) => slot.slotId).join(', ')}`,
      });
    }
    // One that cannot be read lets nobody in as far as is known; of the wanted one that says nothing: it may be newer than
    // this program, or damaged on its way. What a writer opens restores nothing.
    const reads = ({ slot }: StoredSlot): boolean => slot !== null && slot.access === undefined;
    if (!slots.some((other) => other.slotId !== slotId && reads(other))) {
      throw new RepositoryError(
        'KEY_SLOT_LAST',
        'without its last key slot that reads nobody could restore anything',
        {
          hint: 'add another one first',
        },
      );
    }
    await this.#backend.delete(`${prefixes.keys}${slotId}`, call);
  }
}

const wordOf = { passphrase: 'passphrase', keyFile: 'key file', recovery: 'recovery key' } as const;

/** What to try instead of a secret that opens nothing. */
function hintFor({ kind }: Secret, storage: string): string {
  const recover = `stillpoint storage keys ${storage} --recover`;
  if (kind === 'keyFile')
    return `put the right key file in its place; or make it anew with the recovery key: ${recover}`;
  const other = kind === 'passphrase' ? recover : `${recover} --passphrase`;
  return `type it again, with its blanks and its case; or open it in another way: ${other}`;
}

/** The id of a slot, or `null` when no slot is called so. */
function slotIdOf(name: string): string | null {
  const id = name.slice(prefixes.keys.length);
  return /^[0-9a-f]{16}$/.test(id) ? id : null;
}

/** `null` for what is gone since it was listed, and for what is damaged, which `broken` collects. */
async function readSlot(
  backend: Backend,
  name: string,
  call: CallOptions,
  broken: RepositoryError[],
): Promise<KeySlot | null> {
  const range = { offsetBytes: 0, lengthBytes: keySlotBytesMax + 1 };
  const bytes = await backend.read(name, { ...call, range });
  if (bytes === null) return null;
  try {
    const slot = parseSlot(bytes, name);
    if (name !== `${prefixes.keys}${slot.slotId}`) throw damaged(name, 'it is the slot of another name');
    return slot;
  } catch (error) {
    if (!(error instanceof RepositoryError)) throw error;
    broken.push(error);
    return null;
  }
}
