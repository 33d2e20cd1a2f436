import type { _Object as S3Entry, GetObjectCommandOutput, S3 } from '@aws-sdk/client-s3';
import type { ByteRange } from './backend.ts';
import { parseContentRange, readBody, type WantedBytes } from './s3Body.ts';
import { isAbsence, statusOf, UnusableAnswer } from './s3Failure.ts';
import { bodyFields, ifFreeField, putOrTaken, retentionField, tokenField, tokenOf } from './s3Fields.ts';

/** What is known of an object without reading it. */
export interface S3Status {
  readonly sizeBytes: number;
  /** What its creator gave it; `undefined` if that was not us. */
  readonly token: string | undefined;
  /** `undefined` where the bucket has no versions. */
  readonly versionId: string | undefined;
  /** Nobody can delete it before. */
  readonly retainedUntil: Date | undefined;
}

export interface PutOptions {
  /** Only if the key is free (`If-None-Match: *`), as far as the server knows that condition. */
  readonly ifFree: boolean;
  /** Goes with the object, to be known again. */
  readonly token: string;
  readonly retainUntil?: Date | undefined;
}

export interface S3Page {
  readonly entries: readonly { readonly key: string; readonly sizeBytes: number }[];
  /** Where the next page begins; `undefined` on the last one. */
  readonly next: string | undefined;
}

/**
 * The requests that we make of a bucket, one by one. Nothing is repeated here; what they reject with is the library's,
 * or UnusableAnswer (see `storageErrorOf`).
 */
export class S3Bucket {
  readonly #s3: S3;
  readonly #name: string;

  constructor(s3: S3, name: string) {
    this.#s3 = s3;
    this.#name = name;
  }

  async put(
    key: string,
    body: Buffer,
    { ifFree, token, retainUntil }: PutOptions,
    abortSignal: AbortSignal,
  ): Promise<'put' | 'taken'> {
    const request = {
      ...this.#at(key),
      ...bodyFields(body),
      ...tokenField(token),
      ...ifFreeField(ifFree),
      ...retentionField(retainUntil),
    };
    return putOrTaken(async () => {
      const { ETag } = await this.#s3.putObject(request, { abortSignal });
      // Something on the way says yes to whatever it is asked.
      if (ETag === undefined) throw new UnusableAnswer('no ETag for what was stored');
    });
  }

  /**
   * What there is of a range; `null` when there is no such object. An object that is read whole is asked for as a
   * range, too: the answer then says how long it is, apart from how long what was sent is.
   * @param versionId the newest unless told
   */
  async read(
    key: string,
    wanted: WantedBytes,
    abortSignal: AbortSignal,
    versionId?: string,
  ): Promise<Buffer | null> {
    try {
      const answer = await this.#s3.getObject(
        { ...this.#at(key, versionId), Range: rangeHeader(wanted) },
        { abortSignal },
      );
      return await readBody(answer, wanted);
    } catch (error) {
      if (isAbsence(error)) return null;
      if (statusOf(error) === 416) return Buffer.alloc(0);
      throw error;
    }
  }

  /**
   * Looks at an object, by reading its first byte: a HEAD has no content, so that its 404 does not tell an object
   * that is not there from a bucket that is not there.
   * @param versionId the newest unless told
   */
  async look(key: string, abortSignal: AbortSignal, versionId?: string): Promise<S3Status | null> {
    const wanted = { offsetBytes: 0, lengthBytes: 1, isWhole: false };
    try {
      const answer = await this.#s3.getObject(
        { ...this.#at(key, versionId), Range: rangeHeader(wanted) },
        { abortSignal },
      );
      const { length } = await readBody(answer, wanted);
      const place = answer.ContentRange;
      const sizeBytes = place === undefined ? length : parseContentRange(place).totalBytes;
      return { sizeBytes, ...aboutOf(answer) };
    } catch (error) {
      if (isAbsence(error)) return null;
      if (statusOf(error) !== 416) throw error;
    }
    // There is an object, and it has no first byte.
    const answer = await this.#s3.headObject(this.#at(key, versionId), { abortSignal });
    return { sizeBytes: 0, ...aboutOf(answer) };
  }

  /** One that is not there is fine. */
  async delete(key: string, abortSignal: AbortSignal): Promise<void> {
    try {
      await this.#s3.deleteObject(this.#at(key), { abortSignal });
    } catch (error) {
      if (!isAbsence(error)) throw error;
    }
  }

  /** Throws UnusableAnswer for a page that is not whole. */
  async listPage(
    prefix: string,
    from: string | undefined,
    namesMax: number,
    abortSignal: AbortSignal,
  ): Promise<S3Page> {
    const answer = await this.#s3.listObjectsV2(
      {
        Bucket: this.#name,
        Prefix: prefix,
        MaxKeys: namesMax,
        ...(from === undefined ? {} : { ContinuationToken: from }),
      },
      { abortSignal },
    );
    const entries = (answer.Contents ?? []).map((entry) => entryOf(entry, prefix));
    if (answer.IsTruncated === undefined)
      throw new UnusableAnswer('a listing that does not say whether it is all');
    if (answer.KeyCount !== undefined && answer.KeyCount !== entries.length)
      throw new UnusableAnswer(`a listing of ${answer.KeyCount} names with ${entries.length}`);
    const next = answer.IsTruncated ? answer.NextContinuationToken : undefined;
    // A page that leads to itself would never end.
    if (answer.IsTruncated && (next === undefined || next === from))
      throw new UnusableAnswer('a listing that does not say how it goes on');
    return { entries, next };
  }

  #at(
    key: string,
    versionId?: string,
  ): { readonly Bucket: string; readonly Key: string; readonly VersionId?: string } {
    return { Bucket: this.#name, Key: key, ...(versionId === undefined ? {} : { VersionId: versionId }) };
  }
}

function aboutOf(
  answer: Pick<
    GetObjectCommandOutput,
    'Metadata' | 'VersionId' | 'ObjectLockMode' | 'ObjectLockRetainUntilDate'
  >,
): Omit<S3Status, 'sizeBytes'> {
  const { Metadata, VersionId: versionId, ObjectLockMode, ObjectLockRetainUntilDate } = answer;
  // In the other mode whoever has the right for it can delete all the same.
  const retainedUntil = ObjectLockMode === 'COMPLIANCE' ? ObjectLockRetainUntilDate : undefined;
  return { token: tokenOf(Metadata), versionId, retainedUntil };
}

function rangeHeader({ offsetBytes, lengthBytes }: ByteRange): string {
  return `bytes=${offsetBytes}-${offsetBytes + lengthBytes - 1}`;
}

function entryOf(entry: S3Entry, prefix: string): S3Page['entries'][number] {
  const { Key: key, Size: sizeBytes } = entry;
  if (key === undefined || sizeBytes === undefined || !key.startsWith(prefix))
    throw new UnusableAnswer(`a listing of something else than ${prefix}`);
  return { key, sizeBytes };
}
