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
   * that says which one counts. Rejects with KEY_WRONG when there is none.
   */
  static async open(
    backend: Backend,
    repositoryId: string,
    secret: Secret,
    call: CallOptions = {},
  ): Promise<readonly KeyRing[]> {
    const opened: KeyRing[] = [];
    const broken: unknown[] = [];
    for (const { name } of (await listAll(backend, prefixes.keys, call)).slice(0, keySlotsMax)) {
      const slot = await readSlot(backend, name, call, broken);
      if (slot === null || slot.repositoryId !== repositoryId) continue;
      const ring = await openSlot(slot, secret);
      if (ring !== null) opened.push(ring);
    }
    if (opened.length > 0) return opened;
    if (broken.length > 0) throw broken[0];
    throw new RepositoryError(
      'KEY_WRONG',
      `no key slot of the repository at ${backend.location} opens with this key`,
      {
        hint: 'put the right key file in its place; or make it anew with the recovery key: stillpoint storage keys NAME --recover',
      },
    );
  }

  /** What there is, without any secret. Rejects with REPOSITORY_DAMAGED. */
  async list(call: CallOptions = {}): Promise<readonly KeySlot[]> {
    const slots: KeySlot[] = [];
    for (const { name } of await listAll(this.#backend, prefixes.keys, call)) {
      const slot = await readSlot(this.#backend, name, call, null);
      if (slot?.repositoryId === this.#repositoryId) slots.push(slot);
    }
    return slots;
  }

  /** Lets another secret open the repository. Returns the id of its slot. */
  async add(
    secret: Secret,
    options: { readonly label: string; readonly createdAt: string; readonly cost?: ScryptCost | undefined },
    call: CallOptions = {},
  ): Promise<string> {
    const slot = await sealSlot(this.#keys, secret, { repositoryId: this.#repositoryId, ...options });
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
    if (!slots.some((slot) => slot.slotId === slotId)) {
      throw new RepositoryError('KEY_SLOT_NOT_FOUND', `there is no key slot ${slotId}`, {
        hint: `the slots are: ${slots.map((slot) => slot.slotId).join(', ')}`,
      });
    }
    if (slots.length === 1) {
      throw new RepositoryError(
        'KEY_SLOT_LAST',
        'without its last key slot nobody could open the repository',
        {
          hint: 'add another one first',
        },
      );
    }
    await this.#backend.delete(`${prefixes.keys}${slotId}`, call);
  }
}

/** `null` for what is gone since it was listed, and, where `broken` collects them, for what is damaged. */
async function readSlot(
  backend: Backend,
  name: string,
  call: CallOptions,
  broken: unknown[] | null,
): Promise<KeySlot | null> {
  const range = { offsetBytes: 0, lengthBytes: keySlotBytesMax + 1 };
  const bytes = await backend.read(name, { ...call, range });
  if (bytes === null) return null;
  try {
    const slot = parseSlot(bytes, name);
    if (name !== `${prefixes.keys}${slot.slotId}`) throw damaged(name, 'it is the slot of another name');
    return slot;
  } catch (error) {
    if (broken === null || !(error instanceof RepositoryError)) throw error;
    broken.push(error);
    return null;
  }
}
