import { createHash, randomBytes } from 'node:crypto';
import { type BlobOrder, openBody, type SealedBlob, sealBlob } from './blob.ts';
import type { ChunkDomain } from './chunkId.ts';
import { ephemeralKey, type KeyRing } from './keyRing.ts';
import { packEntriesMax } from './limits.ts';
import { giveBack } from './ownMemory.ts';
import { PackBody, PackMemory } from './packBody.ts';
import {
  encodeHeader,
  encodeTable,
  type PackHeader,
  PackKeys,
  type PackKind,
  type PackSealing,
  type PlacedEntry,
  packHeaderBytes,
  packKindOf,
  packSaltBytes,
} from './packFormat.ts';
import { tagBytes } from './seal.ts';

/** A pack that is complete, but for its name. */
export interface SealedPack {
  readonly kind: PackKind;
  readonly sizeBytes: number;
  /** The file, to be put together in this order. */
  readonly parts: readonly Buffer[];
  readonly entries: readonly PlacedEntry[];
}

/** A pack with its id, the SHA-256 of all its bytes: its name tells what must be in it. */
export interface FinishedPack extends SealedPack {
  readonly id: Buffer;
}

export interface PackWriterOptions {
  readonly kind: PackKind;
  readonly repositoryId: Buffer;
  /** With those of a writer, data is sealed to the repository's public key. */
  readonly keys: KeyRing;
  /** Of zstd. */
  readonly level?: number | undefined;
  /** Where the pack gathers; of its own unless told. */
  readonly memory?: PackMemory | undefined;
  /** Random; told by tests and test vectors only. */
  readonly salt?: Buffer | undefined;
  readonly ephemeralSecret?: Buffer | undefined;
}

/** A place in a pack for a chunk that is still being worked on. */
export interface Reservation {
  readonly slot: number;
  readonly order: BlobOrder;
}

/** For whoever makes few packs, and lets go of them. */
const segmentBytesDefault = 256 * 1024;

/**
 * Collects chunks into a pack, in memory. A slot is given out at once and in order; its blob may come later and in any
 * order, from another thread: its key is made of the slot, not of the place in the file, which follows from the lengths
 * of the blobs before it.
 */
export class PackWriter {
  readonly kind: PackKind;
  readonly #keys: PackKeys;
  readonly #headerBytes: Buffer;
  readonly #options: PackWriterOptions;
  /** Those whose blobs stand in the body. */
  readonly #entries: PlacedEntry[] = [];
  readonly #body: PackBody;
  /** By slot: what was reserved and stands not yet in the body. */
  readonly #reserved = new Map<number, Reserved>();
  readonly #complete = Promise.withResolvers<void>();
  #slots = 0;
  /** If nothing that is still to come can be compressed. */
  #endBytesMost = packHeaderBytes;
  #isClosed = false;

  constructor(options: PackWriterOptions) {
    this.kind = options.kind;
    this.#options = options;
    const { header, secret } = newHeader(options);
    this.#keys = new PackKeys(header, secret);
    this.#headerBytes = encodeHeader(header, this.#keys);
    this.#body = new PackBody(options.memory ?? new PackMemory(segmentBytesDefault));
    this.#body.append(this.#headerBytes);
    // Who does not wait for it is told by `place` or `fail` all the same.
    this.#complete.promise.catch(() => undefined);
  }

  /** How long it is at the most, without what its end takes. */
  get bodyBytes(): number {
    return this.#endBytesMost;
  }

  get isEmpty(): boolean {
    return this.#slots === 0;
  }

  get isFull(): boolean {
    return this.#slots >= packEntriesMax;
  }

  /** Gives out the next slot. Each must be filled by `place`, or the pack is lost. */
  reserve(id: Buffer, domain: ChunkDomain, rawBytes: number): Reservation {
    if (packKindOf(domain.type) !== this.kind || this.isFull || this.#isClosed)
      throw new Error('the chunk is not for this pack');
    const slot = this.#slots++;
    this.#reserved.set(slot, { id, domain, rawBytes, blob: null });
    this.#endBytesMost += rawBytes + tagBytes;
    const { level } = this.#options;
    return { slot, order: { blobSecret: this.#keys.blobSecret, slot, id, domain, level } };
  }

  /** Fills a slot. The blob's memory is taken over. */
  place(slot: number, blob: SealedBlob): void {
    const reserved = this.#reserved.get(slot);
    if (reserved === undefined || reserved.blob !== null || blob.body.length !== blob.storedBytes)
      throw new Error(`slot ${slot} does not wait for this blob`);
    this.#reserved.set(slot, { ...reserved, blob });
    this.#endBytesMost -= reserved.rawBytes - blob.storedBytes;
    for (let next = this.#entries.length; this.#append(next); next++);
    if (this.#isClosed && this.#reserved.size === 0) this.#complete.resolve();
  }

  /** A slot can never be filled. */
  fail(error: unknown): void {
    this.#complete.reject(error);
  }

  /** Compresses, encrypts, compares and appends a chunk here and now. */
  add(id: Buffer, domain: ChunkDomain, content: Buffer): void {
    const { slot, order } = this.reserve(id, domain, content.length);
    this.place(slot, sealBlob(content, order));
  }

  /** No slot is given out any more. Resolves when all are filled; rejects as one of them fails. */
  async close(): Promise<void> {
    this.#isClosed = true;
    if (this.#reserved.size === 0) this.#complete.resolve();
    await this.#complete.promise;
  }

  /** The same chunks, to be stored under another salt, and so under another name. */
  renewed(): PackWriter {
    const { salt: _salt, ephemeralSecret: _secret, ...options } = this.#options;
    const other = new PackWriter(options);
    for (const entry of this.#entries) {
      const { offsetBytes, storedBytes } = entry;
      const blob = this.#body.slice(offsetBytes, storedBytes + tagBytes);
      const how = { ...entry, key: this.#keys.blobKey(entry.slot, entry) };
      const parts = { body: blob.subarray(0, storedBytes), tag: blob.subarray(storedBytes) };
      const content = openBody(parts, how);
      if (typeof content === 'string') throw new Error(`a pack in memory has a blob that ${content}`);
      other.add(entry.id, entry.domain, content);
    }
    return other;
  }

  /** Appends the table. Then the pack has all of its bytes, and its name is their hash. */
  seal(): SealedPack {
    if (this.isEmpty || this.#reserved.size > 0) throw new Error('a pack is never empty, and has no gap');
    this.#isClosed = true;
    this.#body.append(encodeTable(this.#headerBytes, this.#entries, this.#keys));
    const { parts, sizeBytes } = this.#body;
    return { kind: this.kind, sizeBytes, parts, entries: this.#entries };
  }

  finish(): FinishedPack {
    const pack = this.seal();
    // Part by part: a copy of the whole pack would take its size once more.
    const digest = createHash('sha256');
    for (const part of pack.parts) digest.update(part);
    return { ...pack, id: digest.digest() };
  }

  /** Gives back its memory; the parts of the pack are not valid any more. */
  giveBack(): void {
    this.#body.giveBack();
  }

  /** Appends a slot if its blob is there; the slots before it are. */
  #append(slot: number): boolean {
    const reserved = this.#reserved.get(slot);
    if (reserved?.blob == null) return false;
    const { id, domain, rawBytes, blob } = reserved;
    const { codec, level, storedBytes } = blob;
    const offsetBytes = this.#body.sizeBytes;
    this.#entries.push({ id, domain, codec, level, rawBytes, storedBytes, slot, offsetBytes });
    this.#body.append(blob.body);
    this.#body.append(blob.tag);
    giveBack(blob.body);
    this.#reserved.delete(slot);
    return true;
  }
}

interface Reserved {
  readonly id: Buffer;
  readonly domain: ChunkDomain;
  readonly rawBytes: number;
  readonly blob: SealedBlob | null;
}

function newHeader(options: PackWriterOptions): { readonly header: PackHeader; readonly secret: Buffer } {
  const { kind, repositoryId, keys } = options;
  const salt = options.salt ?? randomBytes(packSaltBytes);
  const generation = keys.newestGeneration;
  if (keys.isWriter && kind === 'data') {
    const ephemeral = ephemeralKey(options.ephemeralSecret);
    const sealing: PackSealing = 'public';
    return {
      header: { kind, sealing, generation, repositoryId, salt, ephemeralKey: ephemeral.publicKey },
      secret: ephemeral.sharedSecret(keys.sealingPublicKey(generation)),
    };
  }
  return {
    header: {
      kind,
      sealing: 'repository',
      generation,
      repositoryId,
      salt,
      ephemeralKey: Buffer.alloc(32),
    },
    secret: keys.key(generation, kind),
  };
}
