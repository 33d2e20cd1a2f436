import { StorageError } from '../errors.ts';
import {
  assertObjectName,
  type Backend,
  type CallOptions,
  type CreateOptions,
  isObjectName,
  type ListedObject,
  type ReadOptions,
} from './backend.ts';
import { S3Bucket } from './s3Bucket.ts';
import { patienceOf, S3Call, type S3Patience } from './s3Calls.ts';
import { openS3Client } from './s3Client.ts';
import { S3Creation } from './s3Creation.ts';
import type { S3Place } from './s3Failure.ts';
import { S3Parts, type S3Upload } from './s3Parts.ts';
import { S3ObjectLock } from './s3ObjectLock.ts';
import { assertS3Settings, type S3Limits, s3LimitsDefault, type S3Settings } from './s3Settings.ts';
import { S3Versions } from './s3Versions.ts';

/** Below the prefix; its object stays, for all who come later. */
const probeName = 'probe/create-exclusive';

/**
 * Objects in a bucket of an S3 server, all of them below a prefix.
 *
 * Requests are repeated until they are answered, up to the limits of the settings. What `create` is worth depends on
 * the server: see `S3Creation`, and `createsExclusively`.
 */
export class S3Backend implements Backend {
  readonly location: string;
  readonly objectLock: S3ObjectLock;
  readonly #prefix: string;
  readonly #bucket: S3Bucket;
  readonly #uploads: S3Parts;
  readonly #creation: S3Creation;
  readonly #patience: S3Patience;

  private constructor(
    place: S3Place,
    limits: S3Limits,
    requests: {
      readonly bucket: S3Bucket;
      readonly uploads: S3Parts;
      readonly versions: S3Versions;
      readonly prefix: string;
    },
  ) {
    this.location = place.location;
    this.#prefix = requests.prefix;
    this.#bucket = requests.bucket;
    this.#uploads = requests.uploads;
    this.#patience = patienceOf(place, limits);
    this.#creation = new S3Creation(this.#bucket, this.#uploads, {
      patience: this.#patience,
      probeKey: this.#key(probeName),
    });
    this.objectLock = new S3ObjectLock({ ...requests, patience: this.#patience });
  }

  /** Makes a client; asks the server nothing yet. Rejects with STORAGE_SETTINGS_INVALID. */
  static async open(settings: S3Settings): Promise<S3Backend> {
    assertS3Settings(settings);
    const { bucket: name, region = 'us-east-1' } = settings;
    const limits = { ...s3LimitsDefault, ...settings.limits };
    const s3 = await openS3Client(settings, region, limits);
    return new S3Backend(placeOf(settings, region), limits, {
      bucket: new S3Bucket(s3, name),
      uploads: new S3Parts(s3, name),
      versions: new S3Versions(s3, name),
      prefix: settings.prefix === undefined ? '' : `${settings.prefix}/`,
    });
  }

  async create(
    name: string,
    parts: readonly Buffer[],
    options?: CreateOptions,
  ): Promise<'created' | 'exists'> {
    const key = this.#key(name);
    return this.#run(`creating ${name}`, options, (call) =>
      this.#creation.create(call, key, parts, options?.retainUntil),
    );
  }

  async createsExclusively(options?: CallOptions): Promise<boolean> {
    return this.#run('finding out what the server does', options, (call) => this.#creation.isExclusive(call));
  }

  async read(name: string, options: ReadOptions = {}): Promise<Buffer | null> {
    const key = this.#key(name);
    const { objectBytesMax } = this.#patience.limits;
    const wanted =
      options.range === undefined
        ? { offsetBytes: 0, lengthBytes: objectBytesMax, isWhole: true }
        : { ...options.range, isWhole: false };
    return this.#request(`reading ${name}`, options, (signal) => this.#bucket.read(key, wanted, signal));
  }

  async size(name: string, options?: CallOptions): Promise<number | null> {
    const key = this.#key(name);
    const status = await this.#request(`looking at ${name}`, options, (signal) =>
      this.#bucket.look(key, signal),
    );
    return status?.sizeBytes ?? null;
  }

  async *list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    if (!prefix.endsWith('/')) throw new StorageError('NAME_INVALID', `${prefix} does not end in a slash`);
    const keyPrefix = `${this.#key(prefix.slice(0, -1))}/`;
    const { pageNames } = this.#patience.limits;
    let from: string | undefined;
    do {
      const start = from;
      const page = await this.#request(`listing ${prefix}`, options, (signal) =>
        this.#bucket.listPage(keyPrefix, start, pageNames, signal),
      );
      for (const { key, sizeBytes } of page.entries) {
        const name = key.slice(this.#prefix.length);
        if (isObjectName(name)) yield { name, sizeBytes };
      }
      from = page.next;
    } while (from !== undefined);
  }

  async delete(name: string, options?: CallOptions): Promise<void> {
    const key = this.#key(name);
    await this.#request(`deleting ${name}`, options, (signal) => this.#bucket.delete(key, signal));
  }

  /**
   * Removes uploads in parts that interrupted calls left, if they began before a time (of the server's clock). A call
   * that is still at it fails afterwards. Returns how many.
   */
  async removeLeftovers(before: Date, options?: CallOptions): Promise<number> {
    const what = 'removing leftovers';
    let count = 0;
    let from: S3Upload | undefined;
    do {
      const start = from;
      const page = await this.#request(what, options, (signal) =>
        this.#uploads.listPage(this.#prefix, start, signal),
      );
      for (const upload of page.uploads) {
        if (upload.begunAt >= before) continue;
        await this.#request(what, options, (signal) => this.#uploads.abort(upload, signal));
        count++;
      }
      from = page.next;
    } while (from !== undefined);
    return count;
  }

  #key(name: string): string {
    assertObjectName(name);
    return this.#prefix + name;
  }

  async #run<T>(
    what: string,
    options: CallOptions | undefined,
    work: (call: S3Call) => Promise<T>,
  ): Promise<T> {
    return S3Call.run(what, this.#patience, options ?? {}, work);
  }

  /** A call of one request. */
  async #request<T>(
    what: string,
    options: CallOptions | undefined,
    send: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    return this.#run(what, options, (call) => call.request(send));
  }
}

function placeOf(settings: S3Settings, region: string): S3Place {
  const { endpoint, bucket, prefix, credentials } = settings;
  const { origin } = new URL(endpoint);
  const secrets = [credentials.secretAccessKey, credentials.sessionToken].filter(
    (secret) => secret !== undefined,
  );
  return {
    location: [origin, bucket, ...(prefix === undefined ? [] : [prefix])].join('/'),
    endpoint: origin,
    bucket,
    region,
    accessKeyId: credentials.accessKeyId,
    clean: (words) => cleaned(words, secrets),
  };
}

/** A server's words as they may be shown: what it repeats of our secrets is taken out, and what is not text. */
function cleaned(words: string, secrets: readonly string[]): string {
  const hidden = secrets.reduce((text, secret) => text.replaceAll(secret, '[secret]'), words);
  return hidden.replaceAll(/[^\x20-\x7e]+/g, ' ').slice(0, 400);
}
