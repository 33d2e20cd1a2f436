import { readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { messageOf } from '../../common/errors.ts';
import { StorageError } from '../errors.ts';
import type { S3Credentials } from './s3Credentials.ts';

/** Where objects go, and as whom. */
export interface S3Settings {
  /** `https://HOST[:PORT]` or `http://…`, without a path. */
  readonly endpoint: string;
  readonly bucket: string;
  /** Everything of ours begins with this and a slash; the whole bucket unless told. */
  readonly prefix?: string | undefined;
  /** `us-east-1` unless told, which is what servers take that know no regions. */
  readonly region?: string | undefined;
  /** Whether the bucket stands in the path (`HOST/BUCKET`, unless told) or before the host (`BUCKET.HOST`). */
  readonly addressing?: 'path' | 'virtualHost' | undefined;
  /** Certificates (PEM) to trust instead of those of the system. */
  readonly caFile?: string | undefined;
  /** An IP address of this host, from which connections come; the system chooses one unless told. */
  readonly localAddress?: string | undefined;
  readonly credentials: S3Credentials;
  readonly limits?: Partial<S3Limits> | undefined;
}

/** How patient we are, and how much at once. */
export interface S3Limits {
  /** Requests at a time. */
  readonly concurrency: number;
  /** Requests for one answer, the first one included. */
  readonly attemptsMax: number;
  /** The pause before a request is repeated: at random up to the first, doubled each time up to the second. */
  readonly pauseMs: number;
  readonly pauseMsMax: number;
  /** How long one call may take with all that it repeats; of a listing, each page. */
  readonly callMs: number;
  /** How long a connection may take to be made, and then be silent. */
  readonly silenceMs: number;
  /** Who has never answered gets so many requests and so long until a call fails: it may not be there at all. */
  readonly firstContactAttemptsMax: number;
  readonly firstContactMs: number;
  /** Larger objects go in parts, and are then not created exclusively, see `S3Creation`. */
  readonly multipartBytes: number;
  /** Of each part but the last; servers want 5 MiB at least. */
  readonly partBytes: number;
  /** No object that is read is larger; see docs/FORMAT.md, "Limits". */
  readonly objectBytesMax: number;
  /** Names on one page of a listing, 1000 at most. */
  readonly pageNames: number;
}

const mebibyte = 1024 * 1024;

export const s3LimitsDefault: S3Limits = {
  concurrency: 8,
  attemptsMax: 10,
  pauseMs: 250,
  pauseMsMax: 15_000,
  callMs: 600_000,
  silenceMs: 30_000,
  firstContactAttemptsMax: 3,
  firstContactMs: 10_000,
  // More than any object that must be created exclusively (docs/FORMAT.md, "Limits"), see s3Creation.ts.
  multipartBytes: 100 * mebibyte,
  partBytes: 16 * mebibyte,
  objectBytesMax: 256 * mebibyte,
  pageNames: 1000,
};

/** Throws STORAGE_SETTINGS_INVALID for what no server could be asked with. */
export function assertS3Settings(settings: S3Settings): void {
  const { endpoint, bucket, prefix, region } = settings;
  const url = URL.parse(endpoint);
  const isPlain =
    url !== null && url.pathname === '/' && url.search + url.hash + url.username + url.password === '';
  if (!isPlain || !['http:', 'https:'].includes(url.protocol))
    throw invalid('endpoint', 'it is no https://HOST or https://HOST:PORT');
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(bucket)) throw invalid('bucket', 'no bucket is called so');
  if (region !== undefined && !/^[a-zA-Z0-9-]{1,64}$/.test(region))
    throw invalid('region', 'no region is called so');
  if (prefix !== undefined && !isPrefix(prefix)) {
    throw invalid(
      'prefix',
      'it is not made of words of letters, digits, dots, dashes and underscores, with slashes between',
    );
  }
  if (settings.addressing === 'virtualHost' && isIP(url.hostname.replace(/^\[(.*)\]$/, '$1')) !== 0)
    throw invalid('addressing', 'no bucket can stand before an address of numbers');
}

function isPrefix(prefix: string): boolean {
  return (
    prefix.length <= 256 && /^[a-zA-Z0-9_-][a-zA-Z0-9._-]*(\/[a-zA-Z0-9_-][a-zA-Z0-9._-]*)*$/.test(prefix)
  );
}

/** The certificates of `caFile`, or `undefined` for those of the system. Rejects with STORAGE_SETTINGS_INVALID. */
export async function readCaFile(caFile: string | undefined): Promise<string | undefined> {
  if (caFile === undefined) return undefined;
  try {
    const text = await readFile(caFile, 'utf8');
    if (text.includes('-----BEGIN CERTIFICATE-----')) return text;
  } catch (error) {
    throw invalid('caFile', `${caFile} cannot be read: ${messageOf(error)}`);
  }
  throw invalid('caFile', `${caFile} has no certificate (PEM) in it`);
}

function invalid(setting: keyof S3Settings, why: string): StorageError {
  return new StorageError(
    'STORAGE_SETTINGS_INVALID',
    `the setting ${setting} of the S3 storage cannot be used: ${why}`,
    {
      hint: `correct ${setting}`,
    },
  );
}
