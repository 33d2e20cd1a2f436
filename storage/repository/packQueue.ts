import type { Throttle } from '../../common/throttle.ts';
import type { CallOptions } from '../backends/backend.ts';
import { unlessAborted } from '../../common/unlessAborted.ts';
import type { ChunkDomain } from './chunkId.ts';
import type { ChunkWork } from './chunkWorkers.ts';
import { damaged } from './errors.ts';
import type { IndexedPack } from './indexObject.ts';
import { packName } from './names.ts';
import { createOnce, type RepositoryContext } from './objects.ts';
import { asBuffer } from './ownMemory.ts';
import { PackMemory } from './packBody.ts';
import { type PackKind, packKindOf } from './packFormat.ts';
import { PackWriter } from './packWriter.ts';
import { tagBytes } from './seal.ts';

/** Packs on their way to the store take so much at the most, or one pack: of the default size two, while one is filled. */
const storingBytesMax = 64 * 1024 * 1024;
const storingMax = 4;

export interface PackQueueOptions {
  /** Of a pack's body, at which it is closed. */
  readonly packSizeBytes: number;
  readonly work: ChunkWork;
  /** Passed before a pack is sent. */
  readonly throttle?: Throttle | undefined;
  /** A pack is in the store, whole and durable; only then its chunks are known to be there. */
  readonly onStored: (pack: IndexedPack) => void;
}

/**
 * Fills packs, and stores those that are full while the next one is filled. Chunks come in from several sides at once
 * and are worked on at the same time; what is in memory is bounded, so who brings more waits.
 *
 * A pack that could not be stored fails whoever comes next with a chunk or to flush, once; it is kept, and whoever comes
 * after that has it stored under another name.
 */
export class PackQueue {
  readonly #context: RepositoryContext;
  readonly #options: PackQueueOptions;
  readonly #memory: PackMemory;
  readonly #storingMax: number;
  readonly #open = new Map<PackKind, PackWriter>();
  /** None of them rejects. */
  readonly #storing = new Set<Promise<void>>();
  readonly #unsent: PackWriter[] = [];
  /** Why a pack could not be stored, until somebody was told. */
  #failure: { readonly error: unknown } | null = null;
  /** Why a pack can never be complete. */
  #broken: { readonly error: unknown } | null = null;

  constructor(context: RepositoryContext, options: PackQueueOptions) {
    const { packSizeBytes } = options;
    this.#context = context;
    this.#options = options;
    this.#memory = PackMemory.forPacks(packSizeBytes);
    this.#storingMax = Math.min(Math.max(Math.floor(storingBytesMax / packSizeBytes), 1), storingMax);
  }

  /** Memory for packs that was ever taken at once; it is used again. */
  get memoryBytes(): number {
    return this.#memory.segments * this.#memory.segmentBytes;
  }

  /** Whether a chunk can be added now. */
  hasRoom(kind: PackKind): boolean {
    if (this.#failure !== null || this.#broken !== null || this.#unsent.length > 0) return false;
    return this.#open.has(kind) || this.#storing.size < this.#storingMax;
  }

  /**
   * Resolves when there may be room; ask `hasRoom` again. Rejects with what kept a pack from being stored, and with the
   * signal's reason.
   */
  async room(kind: PackKind, options: CallOptions): Promise<void> {
    this.#throwFailure();
    options.signal?.throwIfAborted();
    if (this.#unsent.length > 0) this.#storeUnsent(options);
    if (this.hasRoom(kind)) return;
    await this.#nextStored(options.signal);
    this.#throwFailure();
  }

  /**
   * Adds a chunk while there is room for it. The content must stay as it is until this resolves, with the bytes that the
   * chunk takes. Nothing stops it once it has begun, or its pack would have a gap.
   */
  async add(id: Buffer, domain: ChunkDomain, content: Buffer, options: CallOptions): Promise<number> {
    const kind = packKindOf(domain.type);
    const writer = this.#writer(kind);
    const { slot, order } = writer.reserve(id, domain, content.length);
    // Before the work is done: others go on with the next pack.
    if (writer.isFull || writer.bodyBytes >= this.#options.packSizeBytes) this.#close(kind, options);
    try {
      const blob = await this.#options.work.run({ kind: 'seal', content, order }, content.length);
      writer.place(slot, blob);
      return blob.storedBytes + tagBytes;
    } catch (error) {
      this.#broken ??= { error };
      writer.fail(error);
      throw error;
    }
  }

  /** Closes all packs and waits until they are stored. Rejects with what kept one of them from it. */
  async flush(options: CallOptions): Promise<void> {
    this.#throwFailure();
    for (const kind of this.#open.keys()) this.#close(kind, options);
    this.#storeUnsent(options);
    await this.settled(options.signal);
    this.#throwFailure();
  }

  /** Waits until nothing is being stored, whatever came of it. */
  async settled(signal?: AbortSignal): Promise<void> {
    while (this.#storing.size > 0) await this.#nextStored(signal);
  }

  #writer(kind: PackKind): PackWriter {
    const open = this.#open.get(kind);
    if (open !== undefined) return open;
    const { repositoryId, keys, compressionLevel: level } = this.#context;
    const writer = new PackWriter({ kind, repositoryId, keys, level, memory: this.#memory });
    this.#open.set(kind, writer);
    return writer;
  }

  #close(kind: PackKind, options: CallOptions): void {
    const writer = this.#open.get(kind);
    this.#open.delete(kind);
    if (writer !== undefined && !writer.isEmpty) this.#store(writer, options);
  }

  #storeUnsent(options: CallOptions): void {
    // They may stand there all the same. Under another name: one that a collection has disposed of must never come back.
    for (const writer of this.#unsent.splice(0)) this.#store(writer.renewed(), options);
  }

  #store(writer: PackWriter, options: CallOptions): void {
    const storing = this.#tryToStore(writer, options).finally(() => this.#storing.delete(storing));
    this.#storing.add(storing);
  }

  async #tryToStore(writer: PackWriter, options: CallOptions): Promise<void> {
    try {
      await writer.close();
    } catch (error) {
      this.#broken ??= { error };
      return;
    }
    try {
      this.#options.onStored(await this.#send(writer, options));
      writer.giveBack();
    } catch (error) {
      // Its memory is not used again: what failed may still be reading it.
      this.#unsent.push(writer);
      this.#failure ??= { error };
    }
  }

  async #send(writer: PackWriter, options: CallOptions): Promise<IndexedPack> {
    const { kind, sizeBytes, parts, entries } = writer.seal();
    const id = asBuffer(await this.#options.work.run({ kind: 'digest', parts }, sizeBytes));
    const name = packName(id);
    await this.#options.throttle?.take(sizeBytes, options.signal);
    if ((await createOnce(this.#context.backend, name, parts, options)) === 'taken')
      throw damaged(name, 'its place is taken by something else');
    return { id, kind, sizeBytes, entries };
  }

  /** Resolves when one of the packs is stored or has failed. */
  async #nextStored(signal: AbortSignal | undefined): Promise<void> {
    if (this.#storing.size === 0) return;
    await unlessAborted(Promise.race(this.#storing), signal);
  }

  #throwFailure(): void {
    if (this.#broken !== null) throw this.#broken.error;
    const failure = this.#failure;
    this.#failure = null;
    if (failure !== null) throw failure.error;
  }
}
