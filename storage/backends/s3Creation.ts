import { createHash, randomBytes } from 'node:crypto';
import { StorageError } from '../errors.ts';
import type { S3Bucket } from './s3Bucket.ts';
import { S3Call, type S3Patience } from './s3Calls.ts';
import { statusOf, UnusableAnswer } from './s3Failure.ts';
import { isUploadGone, type S3Parts, type S3Upload } from './s3Parts.ts';
import { bufferRange } from './bufferRange.ts';

/** What is to become an object. */
interface NewObject {
  readonly key: string;
  readonly parts: readonly Buffer[];
  readonly sizeBytes: number;
  readonly token: string;
  readonly retainUntil: Date | undefined;
}

/** Parts of one upload that are on their way at once: each is in memory twice. */
const partsAtOnce = 4;

/**
 * Creates objects, exclusively as far as the server can.
 *
 * Where it honours `If-None-Match: *`, of all who create one name exactly one is told so. Where it does not, what was
 * there before a call began stays, and `created` means that the object was ours when we looked afterwards; of several
 * calls at once each may be told so, and the content of the last one stays. Which of the two holds is found out by
 * trying, because servers also ignore what they do not know (docs/decisions/0016-objects-on-s3.md). An upload in parts
 * is always taken for the second case: few servers make its completion conditional.
 *
 * Each object carries a token of the call that created it. A request that was repeated, by us or by a proxy, and is
 * told that the name is taken, thereby knows whether it was itself who took it.
 */
export class S3Creation {
  readonly #bucket: S3Bucket;
  readonly #uploads: S3Parts;
  readonly #patience: S3Patience;
  readonly #probeKey: string;
  #honoursCondition: boolean | null = null;

  /** @param options.probeKey of an object that stays, for finding out whether the server honours the condition */
  constructor(
    bucket: S3Bucket,
    uploads: S3Parts,
    options: { readonly patience: S3Patience; readonly probeKey: string },
  ) {
    this.#bucket = bucket;
    this.#uploads = uploads;
    this.#patience = options.patience;
    this.#probeKey = options.probeKey;
  }

  /** Whether the server honours the condition; asked once. */
  async isExclusive(call: S3Call): Promise<boolean> {
    this.#honoursCondition ??= await this.#tryCondition(call);
    return this.#honoursCondition;
  }

  async create(
    call: S3Call,
    key: string,
    parts: readonly Buffer[],
    retainUntil?: Date,
  ): Promise<'created' | 'exists'> {
    const sizeBytes = parts.reduce((total, part) => total + part.length, 0);
    const object = { key, parts, sizeBytes, token: tokenFor(parts), retainUntil };
    const ifFree = await this.isExclusive(call);
    const isLarge = sizeBytes > this.#patience.limits.multipartBytes;
    const result = isLarge
      ? await this.#putInParts(call, object, ifFree)
      : await this.#put(call, object, ifFree);
    // Of uploads in parts too few servers honour the condition to believe any.
    if (result === 'put' && ifFree && !isLarge) return 'created';
    return call.request(async (signal) => {
      const there = await this.#bucket.look(key, signal);
      if (there === null && result === 'put') throw new UnusableAnswer('what was stored is not there');
      return there?.token === object.token ? 'created' : 'exists';
    });
  }

  /** The second time the probe is there, whoever made it: then it is refused, or the server does not know how. */
  async #tryCondition(call: S3Call): Promise<boolean> {
    const body = Buffer.from(
      'made to find out whether this server creates objects exclusively; never read\n',
    );
    const options = { ifFree: true, token: 'probe' };
    for (let time = 1; time <= 2; time++) {
      const result = await call.request(async (signal) => {
        try {
          return await this.#bucket.put(this.#probeKey, body, options, signal);
        } catch (error) {
          if (statusOf(error) === 501) return 'unknown';
          throw error;
        }
      });
      if (result !== 'put') return result === 'taken';
    }
    return false;
  }

  async #put(
    call: S3Call,
    { key, parts, token, retainUntil }: NewObject,
    ifFree: boolean,
  ): Promise<'put' | 'taken'> {
    // A stream would save the copy, but cannot be signed.
    const body = parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts);
    return call.request(async (signal) => {
      if (!ifFree && (await this.#bucket.look(key, signal)) !== null) return 'taken';
      return this.#bucket.put(key, body, { ifFree, token, retainUntil }, signal);
    });
  }

  async #putInParts(call: S3Call, object: NewObject, ifFree: boolean): Promise<'put' | 'taken'> {
    const { key } = object;
    if ((await call.request((signal) => this.#bucket.look(key, signal))) !== null) return 'taken';
    const upload = await call.request((signal) => this.#uploads.begin(key, object, signal));
    let result: 'put' | 'taken' | null = null;
    try {
      const etags = await this.#sendParts(call, object, upload);
      result = await call.request((signal) => this.#complete(upload, etags, ifFree, signal));
      return result;
    } finally {
      if (result !== 'put') await this.#giveUp(upload);
    }
  }

  async #complete(
    upload: S3Upload,
    etags: readonly string[],
    ifFree: boolean,
    signal: AbortSignal,
  ): Promise<'put' | 'taken'> {
    const isTaken = async (): Promise<boolean> => (await this.#bucket.look(upload.key, signal)) !== null;
    if (await isTaken()) return 'taken';
    try {
      return await this.#uploads.complete(upload, etags, { ifFree }, signal);
    } catch (error) {
      // Completed by an earlier request whose answer was lost; unless somebody has taken the parts away.
      if (isUploadGone(error) && (await isTaken())) return 'taken';
      throw error;
    }
  }

  /** Sends all parts; the failure of one ends the others. Returns their ETags. */
  async #sendParts(call: S3Call, object: NewObject, upload: S3Upload): Promise<readonly string[]> {
    const { partBytes } = this.#patience.limits;
    const etags: string[] = [];
    const stop = new AbortController();
    const signal = AbortSignal.any([call.signal, stop.signal]);
    const count = Math.ceil(object.sizeBytes / partBytes);
    const indexes = Array.from({ length: count }, (_, index) => index).values();
    const sendInTurn = async (): Promise<void> => {
      for (const index of indexes) {
        const body = bufferRange(object.parts, index * partBytes, partBytes);
        etags[index] = await call.request((own) => this.#uploads.put(upload, index + 1, body, own), signal);
      }
    };
    const senders = Array.from({ length: partsAtOnce }, async () => {
      try {
        await sendInTurn();
      } catch (error) {
        stop.abort(error);
        throw error;
      }
    });
    await Promise.allSettled(senders);
    stop.signal.throwIfAborted();
    return etags;
  }

  /** Takes the parts away: they cost as much as objects, and nobody sees them. */
  async #giveUp(upload: S3Upload): Promise<void> {
    const { limits } = this.#patience;
    const patience = { ...this.#patience, limits: { ...limits, attemptsMax: 3, callMs: limits.silenceMs } };
    try {
      await S3Call.run(`giving up an upload of ${upload.key}`, patience, {}, (call) =>
        call.request((signal) => this.#uploads.abort(upload, signal)),
      );
    } catch (error) {
      // What ended the upload says more than this; `removeLeftovers` finds what stays.
      if (!(error instanceof StorageError)) throw error;
    }
  }
}

/**
 * Not made of a random number alone: a machine that is resumed twice from one snapshot repeats it, and then only for
 * the same content.
 */
function tokenFor(parts: readonly Buffer[]): string {
  const digest = createHash('sha256').update(randomBytes(32));
  for (const part of parts) digest.update(part);
  return digest.digest('hex');
}
