import { createHash, randomBytes } from 'node:crypto';
import type { ChunkDomain } from './chunkId.ts';
import { encode } from './codec.ts';
import { ephemeralKey, type KeyRing } from './keyRing.ts';
import { packEntriesMax } from './limits.ts';
import {
  encodeHeader,
  encodeTable,
  type PackEntry,
  type PackHeader,
  PackKeys,
  type PackKind,
  type PackSealing,
  type PlacedEntry,
  packHeaderBytes,
  packKindOf,
  packSaltBytes,
} from './packFormat.ts';
import { openBlob } from './packReader.ts';
import { encryptOnce } from './seal.ts';

/** A pack that is complete; its id is the SHA-256 of all its bytes, so its name tells what must be in it. */
export interface FinishedPack {
  readonly id: Buffer;
  readonly kind: PackKind;
  readonly sizeBytes: number;
  /** The file, to be put together in this order. */
  readonly parts: readonly Buffer[];
  readonly entries: readonly PlacedEntry[];
}

export interface PackWriterOptions {
  readonly kind: PackKind;
  readonly repositoryId: Buffer;
  /** Keys of the repository, or the public key to which a host without them seals. */
  readonly keys: KeyRing | { readonly generation: number; readonly publicKey: Buffer };
  /** Of zstd. */
  readonly level?: number | undefined;
  /** Random; told by tests and test vectors only. */
  readonly salt?: Buffer | undefined;
  readonly ephemeralSecret?: Buffer | undefined;
}

/** Collects chunks into a pack, in memory. */
export class PackWriter {
  readonly kind: PackKind;
  readonly #header: PackHeader;
  readonly #keys: PackKeys;
  readonly #headerBytes: Buffer;
  readonly #options: PackWriterOptions;
  readonly #entries: PlacedEntry[] = [];
  readonly #blobs: Buffer[] = [];
  #endBytes = packHeaderBytes;

  constructor(options: PackWriterOptions) {
    this.kind = options.kind;
    this.#options = options;
    const { header, secret } = newHeader(options);
    this.#header = header;
    this.#keys = new PackKeys(header, secret);
    this.#headerBytes = encodeHeader(header, this.#keys);
  }

  /** How long it is, without what its end takes. */
  get bodyBytes(): number {
    return this.#endBytes;
  }

  get isEmpty(): boolean {
    return this.#entries.length === 0;
  }

  get isFull(): boolean {
    return this.#entries.length >= packEntriesMax;
  }

  /**
   * Compresses, encrypts and appends a chunk, then decrypts it again and compares: memory that fails is noticed
   * while the data can still be read from its source.
   */
  add(id: Buffer, domain: ChunkDomain, content: Buffer): void {
    if (packKindOf(domain.type) !== this.kind || this.isFull)
      throw new Error('the chunk is not for this pack');
    const encoded = encode(content, this.#options.level);
    const entry: PackEntry = {
      id,
      domain,
      codec: encoded.codec,
      level: encoded.level,
      rawBytes: content.length,
      storedBytes: encoded.bytes.length,
    };
    const slot = this.#entries.length;
    const blob = encryptOnce(this.#keys.blobKey(slot, entry), encoded.bytes);
    const placed = { ...entry, slot, offsetBytes: this.#endBytes };
    if (!openBlob(blob, placed, this.#keys, 'a chunk on its way into a pack').equals(content))
      throw new Error(
        'a chunk that was packed does not unpack to what it was: check the memory of this host',
      );
    this.#entries.push(placed);
    this.#blobs.push(blob);
    this.#endBytes += blob.length;
  }

  /** The same chunks, to be stored under another salt, and so under another name. */
  renewed(): PackWriter {
    const { salt: _salt, ephemeralSecret: _secret, ...options } = this.#options;
    const other = new PackWriter(options);
    for (const [slot, entry] of this.#entries.entries()) {
      const blob = this.#blobs[slot];
      if (blob === undefined) throw new Error(`there is no blob ${slot}`);
      other.add(entry.id, entry.domain, openBlob(blob, entry, this.#keys, 'a pack that is sealed again'));
    }
    return other;
  }

  finish(): FinishedPack {
    if (this.isEmpty) throw new Error('a pack is never empty');
    const parts = [
      this.#headerBytes,
      ...this.#blobs,
      encodeTable(this.#headerBytes, this.#entries, this.#keys),
    ];
    // Part by part: a copy of the whole pack would take its size once more.
    const digest = createHash('sha256');
    for (const part of parts) digest.update(part);
    return {
      id: digest.digest(),
      kind: this.#header.kind,
      sizeBytes: parts.reduce((total, part) => total + part.length, 0),
      parts,
      entries: this.#entries,
    };
  }
}

function newHeader(options: PackWriterOptions): { readonly header: PackHeader; readonly secret: Buffer } {
  const { kind, repositoryId, keys } = options;
  const salt = options.salt ?? randomBytes(packSaltBytes);
  if ('publicKey' in keys) {
    const ephemeral = ephemeralKey(options.ephemeralSecret);
    const sealing: PackSealing = 'public';
    const { generation } = keys;
    return {
      header: { kind, sealing, generation, repositoryId, salt, ephemeralKey: ephemeral.publicKey },
      secret: ephemeral.sharedSecret(keys.publicKey),
    };
  }
  const generation = keys.newestGeneration;
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
