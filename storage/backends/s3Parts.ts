import type { MultipartUpload, S3 } from '@aws-sdk/client-s3';
import { UnusableAnswer } from './s3Failure.ts';
import { bodyFields, ifFreeField, putOrTaken, retentionField, tokenField } from './s3Fields.ts';
import type { PutOptions } from './s3Bucket.ts';

/** An upload in parts that was begun and not completed. */
export interface S3Upload {
  readonly key: string;
  readonly uploadId: string;
}

export interface BegunUpload extends S3Upload {
  readonly begunAt: Date;
}

/** The requests of uploads in parts; as in `S3Bucket`, one by one. */
export class S3Parts {
  readonly #s3: S3;
  readonly #bucket: string;

  constructor(s3: S3, bucket: string) {
    this.#s3 = s3;
    this.#bucket = bucket;
  }

  async begin(
    key: string,
    { token, retainUntil }: Omit<PutOptions, 'ifFree'>,
    abortSignal: AbortSignal,
  ): Promise<S3Upload> {
    const request = {
      Bucket: this.#bucket,
      Key: key,
      ...tokenField(token),
      ...retentionField(retainUntil),
    };
    const { UploadId: uploadId } = await this.#s3.createMultipartUpload(request, { abortSignal });
    if (uploadId === undefined) throw new UnusableAnswer('no id for an upload');
    return { key, uploadId };
  }

  /** Returns the part's ETag. @param number counted from 1 */
  async put(upload: S3Upload, number: number, body: Buffer, abortSignal: AbortSignal): Promise<string> {
    const request = { ...this.#of(upload), PartNumber: number, ...bodyFields(body) };
    const { ETag } = await this.#s3.uploadPart(request, { abortSignal });
    if (ETag === undefined) throw new UnusableAnswer('no ETag for a part');
    return ETag;
  }

  /** Makes an object of all parts. */
  async complete(
    upload: S3Upload,
    etags: readonly string[],
    { ifFree }: Pick<PutOptions, 'ifFree'>,
    abortSignal: AbortSignal,
  ): Promise<'put' | 'taken'> {
    const parts = etags.map((ETag, index) => ({ ETag, PartNumber: index + 1 }));
    const request = { ...this.#of(upload), MultipartUpload: { Parts: parts }, ...ifFreeField(ifFree) };
    return putOrTaken(async () => {
      const { ETag } = await this.#s3.completeMultipartUpload(request, { abortSignal });
      if (ETag === undefined) throw new UnusableAnswer('no ETag for what was put together');
    });
  }

  /** One that is not there is fine. */
  async abort(upload: S3Upload, abortSignal: AbortSignal): Promise<void> {
    try {
      await this.#s3.abortMultipartUpload(this.#of(upload), { abortSignal });
    } catch (error) {
      if (!isUploadGone(error)) throw error;
    }
  }

  /** A page of the uploads below a prefix that have neither been completed nor aborted. @param from the end of a page */
  async listPage(
    prefix: string,
    from: S3Upload | undefined,
    abortSignal: AbortSignal,
  ): Promise<{ readonly uploads: readonly BegunUpload[]; readonly next: S3Upload | undefined }> {
    const answer = await this.#s3.listMultipartUploads(
      {
        Bucket: this.#bucket,
        Prefix: prefix,
        ...(from === undefined ? {} : { KeyMarker: from.key, UploadIdMarker: from.uploadId }),
      },
      { abortSignal },
    );
    const uploads = (answer.Uploads ?? []).map((upload) => begunUpload(upload, prefix));
    if (answer.IsTruncated !== true) return { uploads, next: undefined };
    const { NextKeyMarker: key, NextUploadIdMarker: uploadId } = answer;
    if (key === undefined || uploadId === undefined || (key === from?.key && uploadId === from.uploadId))
      throw new UnusableAnswer('a listing that does not say how it goes on');
    return { uploads, next: { key, uploadId } };
  }

  #of({ key, uploadId }: S3Upload): {
    readonly Bucket: string;
    readonly Key: string;
    readonly UploadId: string;
  } {
    return { Bucket: this.#bucket, Key: key, UploadId: uploadId };
  }
}

function begunUpload(upload: MultipartUpload, prefix: string): BegunUpload {
  const { Key: key, UploadId: uploadId, Initiated: begunAt } = upload;
  if (key === undefined || uploadId === undefined || begunAt === undefined || !key.startsWith(prefix))
    throw new UnusableAnswer(`a listing of other uploads than those of ${prefix}`);
  return { key, uploadId, begunAt };
}

/** Whether the server knows nothing of an upload: it was completed or aborted. */
export function isUploadGone(error: unknown): boolean {
  return error instanceof Error && error.name === 'NoSuchUpload';
}
