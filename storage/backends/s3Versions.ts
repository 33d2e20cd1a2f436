import type { S3 } from '@aws-sdk/client-s3';
import { statusOf, UnusableAnswer } from './s3Failure.ts';

/** A version of an object, or the marker of a deletion. */
export interface S3Version {
  readonly key: string;
  readonly versionId: string;
  /** A read finds it, or nothing if it is a marker. */
  readonly isLatest: boolean;
  readonly isMarker: boolean;
  /** Of its content; empty for a marker. */
  readonly etag: string;
  readonly changedAt: Date;
}

/** Where a listing of versions goes on. */
export interface VersionPlace {
  readonly key: string;
  readonly versionId: string | undefined;
}

export interface VersionPage {
  readonly versions: readonly S3Version[];
  /** `undefined` on the last one. */
  readonly next: VersionPlace | undefined;
}

/** The requests about versions and retention; as in `S3Bucket`, one by one. */
export class S3Versions {
  readonly #s3: S3;
  readonly #bucket: string;

  constructor(s3: S3, bucket: string) {
    this.#s3 = s3;
    this.#bucket = bucket;
  }

  /** Servers refuse to shorten what there is. */
  async retain(key: string, until: Date, abortSignal: AbortSignal): Promise<void> {
    const Retention = { Mode: 'COMPLIANCE', RetainUntilDate: until } as const;
    await this.#s3.putObjectRetention({ Bucket: this.#bucket, Key: key, Retention }, { abortSignal });
  }

  /** Puts the marker of a deletion on top of all versions. */
  async mark(key: string, abortSignal: AbortSignal): Promise<void> {
    await this.#s3.deleteObject({ Bucket: this.#bucket, Key: key }, { abortSignal });
  }

  /** `refused`: the server says no, whether that is for a retention or for missing rights. */
  async delete(
    { key, versionId }: Pick<S3Version, 'key' | 'versionId'>,
    abortSignal: AbortSignal,
  ): Promise<'deleted' | 'refused'> {
    try {
      await this.#s3.deleteObject({ Bucket: this.#bucket, Key: key, VersionId: versionId }, { abortSignal });
      return 'deleted';
    } catch (error) {
      // Each kind of server has another of these for what is under retention.
      if ([400, 403, 405].includes(statusOf(error) ?? 0)) return 'refused';
      throw error;
    }
  }

  /** Throws UnusableAnswer for a page that is not whole. */
  async listPage(
    prefix: string,
    from: VersionPlace | undefined,
    namesMax: number,
    abortSignal: AbortSignal,
  ): Promise<VersionPage> {
    const answer = await this.#s3.listObjectVersions(
      {
        Bucket: this.#bucket,
        Prefix: prefix,
        MaxKeys: namesMax,
        ...(from === undefined ? {} : { KeyMarker: from.key }),
        ...(from?.versionId === undefined ? {} : { VersionIdMarker: from.versionId }),
      },
      { abortSignal },
    );
    const versions = [
      ...(answer.Versions ?? []).map((entry) =>
        versionOf(entry, prefix, { isMarker: false, etag: entry.ETag }),
      ),
      ...(answer.DeleteMarkers ?? []).map((entry) => versionOf(entry, prefix, { isMarker: true, etag: '' })),
    ];
    if (answer.IsTruncated === undefined)
      throw new UnusableAnswer('a listing of versions that does not say whether it is all');
    if (!answer.IsTruncated) return { versions, next: undefined };
    const { NextKeyMarker: key, NextVersionIdMarker: versionId } = answer;
    // A page that leads to itself would never end.
    if (key === undefined || (key === from?.key && versionId === from.versionId))
      throw new UnusableAnswer('a listing of versions that does not say how it goes on');
    return { versions, next: { key, versionId } };
  }
}

function versionOf(
  entry: {
    readonly Key?: string | undefined;
    readonly VersionId?: string | undefined;
    readonly IsLatest?: boolean | undefined;
    readonly LastModified?: Date | undefined;
  },
  prefix: string,
  content: { readonly isMarker: boolean; readonly etag: string | undefined },
): S3Version {
  const { Key: key, VersionId: versionId, IsLatest: isLatest, LastModified: changedAt } = entry;
  const { isMarker, etag } = content;
  const isWhole =
    key !== undefined && versionId !== undefined && isLatest !== undefined && changedAt !== undefined;
  if (!isWhole || etag === undefined || !key.startsWith(prefix))
    throw new UnusableAnswer(`a listing of other versions than those of ${prefix}`);
  return { key, versionId, isLatest, isMarker, etag, changedAt };
}
