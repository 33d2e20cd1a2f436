import {
  assertObjectName,
  type Backend,
  type ListedObject,
  type ReadOptions,
} from '../../storage/backends/backend.ts';
import { StorageError } from '../../storage/errors.ts';
import type { Turns } from './turns.ts';

/*
 * A store of objects in memory, with faults that come from a seed. The fault model:
 *
 * - A call fails before it has any effect (`failBefore`), or after its effect, so that only the answer is lost
 *   (`lostAnswer`).
 * - A client crashes at a call: nothing happens, or the effect does and the client never knows. From then on all its
 *   calls reject. In a `torn` store the object of a create that crashed may stand under its name with a part of its
 *   bytes only: no store may do that, and yet nothing may be believed because of it.
 * - A listing misses objects that were created just now, and shows ones that were deleted just now (`staleListing`).
 * - A read gives bytes with one bit turned (`flippedRead`), the next one may be right again; `damage` turns one for good.
 * - A call is rejected, and its effect happens later all the same (`late`): a hung mount that thaws.
 * - A create finds the store full (`full`, or more than `capacityBytes` would be in it).
 * - A long listing is made in pieces, and others change the store between them.
 * Creating is atomic and exclusive, and what a read by name finds is always the newest: what is not in this list, the
 * format relies on.
 */

/** A generator of numbers from 0 to 1 (mulberry32): the same seed, the same history. */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** How often what happens, from 0 to 1. */
export interface Faults {
  readonly failBefore?: number;
  readonly lostAnswer?: number;
  readonly staleListing?: number;
  readonly flippedRead?: number;
  readonly full?: number;
  readonly late?: number;
  /** Suspends the client before its call of this number, counted from 1, until it resolves. */
  readonly suspend?: (call: number) => Promise<void>;
  /** The client dies at its call of this number, counted from 1. */
  readonly crashAtCall?: number;
  /** The effect of that call happens. */
  readonly crashAfterEffect?: boolean;
  /** A create that crashes leaves a part under the final name. */
  readonly torn?: boolean;
}

/** What a crashed client's calls reject with. */
export class SimulatedCrash extends Error {
  override readonly name = 'SimulatedCrash';
}

/** A listing may be this many calls behind. */
const staleCalls = 12;
/** A late effect comes up to so many calls later. */
const lateCalls = 300;

interface StoredObject {
  readonly bytes: Buffer;
  readonly createdAtCall: number;
  /** In the order of their making. */
  readonly number: number;
}

export class ObjectStore {
  readonly objects = new Map<string, StoredObject>();
  readonly deleted = new Map<string, { readonly object: StoredObject; readonly atCall: number }>();
  created = 0;
  calls = 0;
  /** Objects of one piece of a listing. */
  pageObjects = 1000;
  /** Bytes of all objects. */
  capacityBytes = Number.POSITIVE_INFINITY;
  /** Who may call when; without it everybody calls at once. */
  turns: Turns | null = null;
  #late: { readonly atCall: number; readonly effect: () => void }[] = [];

  get usedBytes(): number {
    return [...this.objects.values()].reduce((total, { bytes }) => total + bytes.length, 0);
  }

  /** Has an effect happen some calls from now. */
  postpone(calls: number, effect: () => void): void {
    this.#late.push({ atCall: this.calls + calls, effect });
  }

  /** Has everything that is late by now happen. */
  settle(untilCall = this.calls): void {
    const due = this.#late.filter(({ atCall }) => atCall <= untilCall);
    this.#late = this.#late.filter(({ atCall }) => atCall > untilCall);
    for (const { effect } of due) effect();
  }

  /** Another store with the same objects. */
  copy(): ObjectStore {
    const other = new ObjectStore();
    for (const [name, object] of this.objects) other.objects.set(name, object);
    other.created = this.created;
    return other;
  }

  /** A client of this store, with faults of its own. */
  client(faults: Faults = {}, seed = 1): SimulatedClient {
    return new SimulatedClient(this, faults, randomFrom(seed));
  }

  /** Turns a bit of an object for good. */
  damage(name: string, bit: number): void {
    const object = this.objects.get(name);
    if (object === undefined) throw new Error(`there is no ${name}`);
    const bytes = Buffer.from(object.bytes);
    const place = bit % (bytes.length * 8);
    bytes[place >> 3] = (bytes[place >> 3] ?? 0) ^ (1 << (place & 7));
    this.objects.set(name, { ...object, bytes });
  }

  /** Takes bytes off the end of an object. */
  truncate(name: string, lostBytes: number): void {
    const object = this.objects.get(name);
    if (object === undefined) throw new Error(`there is no ${name}`);
    this.objects.set(name, { ...object, bytes: object.bytes.subarray(0, -lostBytes) });
  }

  bytesOf(name: string): Buffer {
    const object = this.objects.get(name);
    if (object === undefined) throw new Error(`there is no ${name}`);
    return object.bytes;
  }

  names(prefix = ''): readonly string[] {
    return [...this.objects.keys()].filter((name) => name.startsWith(prefix)).toSorted();
  }
}

/** What a call does to the store. */
interface Effect<T> {
  run(): T;
  /** Of a create: a part of it. */
  tear?(): void;
  /** Of a call that changes something, when nobody waits for it any more. */
  late?(): void;
}

export class SimulatedClient implements Backend {
  readonly location = 'simulated store';
  readonly objectLock = null;
  readonly #store: ObjectStore;
  readonly #faults: Faults;
  readonly #random: () => number;
  readonly #turns: Turns | null;
  #crashed = false;
  /** Calls of this client. */
  calls = 0;

  constructor(store: ObjectStore, faults: Faults, random: () => number) {
    this.#store = store;
    this.#faults = faults;
    this.#random = random;
    this.#turns = store.turns;
  }

  async create(
    name: string,
    parts: readonly Buffer[],
    options: ReadOptions = {},
  ): Promise<'created' | 'exists'> {
    assertObjectName(name);
    const bytes = Buffer.concat(parts);
    const effect = (content: Buffer): 'created' | 'exists' => {
      if (this.#store.objects.has(name)) return 'exists';
      const number = this.#store.created++;
      this.#store.objects.set(name, { bytes: content, createdAtCall: this.#store.calls, number });
      this.#store.deleted.delete(name);
      return 'created';
    };
    return this.#call(`creating ${name}`, options, {
      run: () => {
        const isFull = this.#store.usedBytes + bytes.length > this.#store.capacityBytes;
        if ((isFull && !this.#store.objects.has(name)) || this.#happens(this.#faults.full))
          throw new StorageError('STORAGE_FULL', `creating ${name}: no space`);
        return effect(bytes);
      },
      tear: () => void effect(bytes.subarray(0, Math.floor(this.#random() * bytes.length))),
      late: () => void effect(bytes),
    });
  }

  createsExclusively(): Promise<boolean> {
    return Promise.resolve(true);
  }

  async read(name: string, options: ReadOptions = {}): Promise<Buffer | null> {
    assertObjectName(name);
    return this.#call(`reading ${name}`, options, {
      run: () => {
        const object = this.#store.objects.get(name);
        if (object === undefined) return null;
        const { offsetBytes = 0, lengthBytes = object.bytes.length } = options.range ?? {};
        const bytes = Buffer.from(object.bytes.subarray(offsetBytes, offsetBytes + lengthBytes));
        if (bytes.length > 0 && this.#happens(this.#faults.flippedRead)) {
          const place = Math.floor(this.#random() * bytes.length);
          bytes[place] = (bytes[place] ?? 0) ^ (1 << Math.floor(this.#random() * 8));
        }
        return bytes;
      },
    });
  }

  async size(name: string, options: ReadOptions = {}): Promise<number | null> {
    assertObjectName(name);
    return this.#call(`looking at ${name}`, options, {
      run: () => this.#store.objects.get(name)?.bytes.length ?? null,
    });
  }

  async *list(prefix: string, options: ReadOptions = {}): AsyncIterable<ListedObject> {
    if (!prefix.endsWith('/')) throw new StorageError('NAME_INVALID', `${prefix} does not end in a slash`);
    assertObjectName(prefix.slice(0, -1));
    // Nobody may rely on an order: the newest first, or the oldest, and with it what comes into being meanwhile.
    const direction = this.#random() < 0.5 ? 1 : -1;
    let after = direction * Number.NEGATIVE_INFINITY;
    for (;;) {
      const from = after;
      const piece = await this.#call(`listing ${prefix}`, options, {
        run: () => this.#listed(prefix, direction, from),
      });
      yield* piece.map(({ name, sizeBytes }) => ({ name, sizeBytes }));
      const last = piece.at(-1);
      if (last === undefined || piece.length < this.#store.pageObjects) return;
      after = last.number;
    }
  }

  async delete(name: string, options: ReadOptions = {}): Promise<void> {
    assertObjectName(name);
    const effect = (): void => {
      const object = this.#store.objects.get(name);
      if (object === undefined) return;
      this.#store.objects.delete(name);
      this.#store.deleted.set(name, { object, atCall: this.#store.calls });
    };
    await this.#call(`deleting ${name}`, options, { run: effect, late: effect });
  }

  /** A piece of a listing: what comes behind the object of a number. */
  #listed(
    prefix: string,
    direction: number,
    after: number,
  ): readonly (ListedObject & { readonly number: number })[] {
    const isRecent = (call: number) => this.#store.calls - call <= staleCalls;
    const isStale = (call: number) => isRecent(call) && this.#happens(this.#faults.staleListing);
    const there = [...this.#store.objects].filter(([, { createdAtCall }]) => !isStale(createdAtCall));
    const gone = [...this.#store.deleted].filter(([, { atCall }]) => isStale(atCall));
    return [...there, ...gone.map(([name, { object }]): [string, StoredObject] => [name, object])]
      .filter(([name, { number }]) => name.startsWith(prefix) && (number - after) * direction > 0)
      .map(([name, { bytes, number }]) => ({ name, sizeBytes: bytes.length, number }))
      .toSorted((one, other) => (one.number - other.number) * direction)
      .slice(0, this.#store.pageObjects);
  }

  async #call<T>(what: string, options: ReadOptions, effect: Effect<T>): Promise<T> {
    options.signal?.throwIfAborted();
    // As with a real store, others get their turn in between.
    await (this.#turns === null ? Promise.resolve() : this.#turns.take(this));
    await this.#faults.suspend?.(this.calls + 1);
    this.#store.calls++;
    // Who looks at the store between two turns of others finds it standing still.
    if (this.#turns === this.#store.turns) this.#store.settle();
    this.calls++;
    if (this.calls === this.#faults.crashAtCall) this.#crash(effect);
    if (this.#crashed) throw new SimulatedCrash(`crashed before ${what}`);
    if (this.#happens(this.#faults.failBefore)) throw unreachable(what);
    if (effect.late !== undefined && this.#happens(this.#faults.late)) {
      this.#store.postpone(Math.floor(this.#random() * lateCalls), () => effect.late?.());
      throw unreachable(what);
    }
    const result = effect.run();
    if (this.#happens(this.#faults.lostAnswer)) throw unreachable(what);
    return result;
  }

  #crash(effect: Effect<unknown>): void {
    this.#crashed = true;
    if (this.#faults.torn === true && effect.tear !== undefined) effect.tear();
    else if (this.#faults.crashAfterEffect === true) effect.run();
  }

  #happens(rate: number | undefined): boolean {
    return rate !== undefined && rate > 0 && this.#random() < rate;
  }
}

function unreachable(what: string): StorageError {
  return new StorageError('STORAGE_UNREACHABLE', `${what}: the connection was lost`, { retryable: true });
}
