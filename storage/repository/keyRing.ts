import {
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  hash,
  type KeyObject,
  randomBytes,
  sign,
  verify,
} from 'node:crypto';
import { ByteReader, ByteWriter } from './bytes.ts';
import { RepositoryError } from './errors.ts';
import { generationsMax } from './limits.ts';
import { deriveKey, keyBytes } from './seal.ts';

/** What a generation's keys are for; a host that is given some of them can do that part and no other. */
export type KeyPurpose = 'data' | 'tree' | 'object' | 'manifest' | 'config';

/** One generation of the keys, and its number. */
interface Generation {
  readonly number: number;
  /** `null` where only what a writer needs was given. */
  readonly master: Buffer | null;
  /** What was derived from the master key, or given, by what it is for. */
  readonly keys: Map<string, Buffer>;
}

/** What a writer is given of each generation, in this order; `seal-public` is no secret. */
const writerLabels = ['tree', 'object', 'manifest', 'config', 'sign', 'seal-public'] as const;

/** DER in front of the raw 32 bytes (RFC 8410). */
const der = {
  x25519Private: Buffer.from('302e020100300506032b656e04220420', 'hex'),
  x25519Public: Buffer.from('302a300506032b656e032100', 'hex'),
  ed25519Private: Buffer.from('302e020100300506032b657004220420', 'hex'),
};

/**
 * The master keys of a repository, all generations of them. New things are written with the newest; ids of chunks
 * are made with a key of the first, so that a rotation keeps what is stored.
 *
 * A writer's ring holds no master key, but what is needed to write backups and to keep them in order: it opens manifests,
 * indexes and pages, and no chunk of data, not even those that were written with it.
 */
export class KeyRing {
  readonly #generations: readonly Generation[];

  private constructor(generations: readonly Generation[]) {
    this.#generations = generations;
  }

  static generate(): KeyRing {
    return KeyRing.of([randomBytes(keyBytes)]);
  }

  /** Made of given master keys, the first generation first. */
  static of(masters: readonly Buffer[]): KeyRing {
    if (masters.length === 0 || masters.some((master) => master.length !== keyBytes))
      throw new RangeError('a key ring holds keys of 32 bytes');
    return new KeyRing(masters.map((master, index) => ({ number: index + 1, master, keys: new Map() })));
  }

  /** Whether it opens no data. */
  get isWriter(): boolean {
    return this.#generations.some(({ master }) => master === null);
  }

  /** Throws KEY_WRITE_ONLY for a writer's ring. @param storage its name, for what the error says to type */
  requireReading(storage = 'NAME'): void {
    if (this.isWriter) throw writeOnly(storage);
  }

  /** What a host gets that is to write, and not to read. */
  writer(): KeyRing {
    return new KeyRing(
      this.#generations.map(({ number }) => {
        const keys = new Map<string, Buffer>(
          writerLabels.map((label) => [label, this.#derive(number, label)]),
        );
        return { number, master: null, keys: number === 1 ? keys.set('dedup', this.dedupKey) : keys };
      }),
    );
  }

  /** The same with one more generation, which is used from then on. Throws KEY_WRITE_ONLY. */
  rotated(): KeyRing {
    this.requireReading();
    const master = randomBytes(keyBytes);
    return new KeyRing([
      ...this.#generations,
      { number: this.newestGeneration + 1, master, keys: new Map() },
    ]);
  }

  /** The same without generations that the configuration does not know: a rotation may have ended half way. */
  upTo(generation: number): KeyRing {
    // Makes the error of a generation that is not known.
    this.key(generation, 'config');
    return new KeyRing(this.#generations.slice(0, generation));
  }

  get newestGeneration(): number {
    return this.#generations.length;
  }

  /** Throws REPOSITORY_TOO_NEW for a generation that was made since the ring was read; KEY_WRITE_ONLY. */
  key(generation: number, purpose: KeyPurpose): Buffer {
    return this.#derive(generation, purpose);
  }

  /** The key of all ids of chunks, for ever. */
  get dedupKey(): Buffer {
    return this.#derive(1, 'dedup');
  }

  /** Identifies the key that signs in this generation: 8 bytes. */
  signerId(generation: number): Buffer {
    const raw = rawPublicKey(createPublicKey(this.#signKey(generation)));
    return hash('sha256', raw, 'buffer').subarray(0, 8);
  }

  /** Ed25519. */
  sign(generation: number, text: Uint8Array): Buffer {
    return sign(null, text, this.#signKey(generation));
  }

  verify(generation: number, text: Uint8Array, signature: Uint8Array): boolean {
    return verify(null, text, createPublicKey(this.#signKey(generation)), signature);
  }

  /** Public key to which a host without the repository's keys seals its packs. */
  sealingPublicKey(generation: number): Buffer {
    return this.#derive(generation, 'seal-public');
  }

  /** X25519 of our private sealing key with a public key that stands in a pack; `null` if that is no such key. */
  sharedSecret(generation: number, publicKey: Uint8Array): Buffer | null {
    const key = this.#sealKey(generation);
    try {
      return x25519(key, publicKey);
    } catch (error) {
      // OpenSSL refuses a public key of small order, for which anybody knows the secret.
      if (error instanceof Error && 'code' in error) return null;
      throw error;
    }
  }

  /** As it stands, sealed, in a key slot. */
  encode(): Buffer {
    const writer = new ByteWriter().u32(this.#generations.length);
    if (this.isWriter) writer.bytes(this.dedupKey);
    for (const { number, master } of this.#generations) {
      writer.u32(number);
      if (master !== null) writer.bytes(master);
      else for (const label of writerLabels) writer.bytes(this.#derive(number, label));
    }
    return writer.finish();
  }

  static decode(bytes: Buffer): KeyRing {
    const reader = new ByteReader(bytes, 'the key ring');
    const count = reader.count(generationsMax, 4 + keyBytes);
    const masters = Array.from({ length: count }, (_, index) => {
      if (reader.u32() !== index + 1) throw reader.fail('its generations are not in order');
      return Buffer.from(reader.bytes(keyBytes));
    });
    reader.end();
    if (masters.length === 0) throw reader.fail('it is empty');
    return KeyRing.of(masters);
  }

  /** Reads what `encode` makes of a writer's ring. */
  static decodeWriter(bytes: Buffer): KeyRing {
    const reader = new ByteReader(bytes, 'the key ring');
    const count = reader.count(generationsMax, 4 + writerLabels.length * keyBytes);
    const dedupKey = Buffer.from(reader.bytes(keyBytes));
    const generations = Array.from({ length: count }, (_, index): Generation => {
      if (reader.u32() !== index + 1) throw reader.fail('its generations are not in order');
      const keys = new Map<string, Buffer>(
        writerLabels.map((label) => [label, Buffer.from(reader.bytes(keyBytes))]),
      );
      return { number: index + 1, master: null, keys: index === 0 ? keys.set('dedup', dedupKey) : keys };
    });
    reader.end();
    if (generations.length === 0) throw reader.fail('it is empty');
    return new KeyRing(generations);
  }

  #derive(number: number, label: string): Buffer {
    const generation = this.#generations[number - 1];
    if (generation === undefined) {
      throw new RepositoryError(
        'REPOSITORY_TOO_NEW',
        `generation ${number} of the key is not known; the newest known one is ${this.newestGeneration}`,
        { hint: 'the key was rotated: open the repository again', retryable: true },
      );
    }
    const known = generation.keys.get(label);
    if (known !== undefined) return known;
    if (generation.master === null) throw writeOnly('NAME');
    const key =
      label === 'seal-public'
        ? rawPublicKey(createPublicKey(this.#sealKey(number)))
        : deriveKey(generation.master, label);
    generation.keys.set(label, key);
    return key;
  }

  #signKey(generation: number): KeyObject {
    return privateKey(der.ed25519Private, this.#derive(generation, 'sign'));
  }

  #sealKey(generation: number): KeyObject {
    return privateKey(der.x25519Private, this.#derive(generation, 'seal'));
  }
}

function writeOnly(storage: string): RepositoryError {
  return new RepositoryError(
    'KEY_WRITE_ONLY',
    'the key of this host may write into the repository, and not read what is in it',
    {
      hint: `do it on a host whose key reads, or with a copy in another storage; with the recovery key this host reads, too: stillpoint storage keys ${storage} --recover`,
    },
  );
}

/** A key pair for one pack; its public key stands in the header. */
export function ephemeralKey(secret: Uint8Array = randomBytes(keyBytes)): {
  readonly publicKey: Buffer;
  sharedSecret(recipient: Uint8Array): Buffer;
} {
  const key = privateKey(der.x25519Private, secret);
  return {
    publicKey: rawPublicKey(createPublicKey(key)),
    sharedSecret: (recipient) => x25519(key, recipient),
  };
}

function x25519(key: KeyObject, publicKey: Uint8Array): Buffer {
  const other = createPublicKey({
    key: Buffer.concat([der.x25519Public, publicKey]),
    format: 'der',
    type: 'spki',
  });
  return diffieHellman({ privateKey: key, publicKey: other });
}

function privateKey(prefix: Buffer, raw: Uint8Array): KeyObject {
  return createPrivateKey({ key: Buffer.concat([prefix, raw]), format: 'der', type: 'pkcs8' });
}

/** The last 32 bytes of the DER form. */
function rawPublicKey(key: KeyObject): Buffer {
  return key.export({ format: 'der', type: 'spki' }).subarray(-32);
}
