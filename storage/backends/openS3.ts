import { StorageError } from '../errors.ts';
import type { Backend } from './backend.ts';
import { S3Backend } from './s3Backend.ts';
import { readS3Credentials } from './s3Credentials.ts';
import type { S3Settings } from './s3Settings.ts';

/** A bucket as a configuration names it. */
export interface S3Url extends Pick<S3Settings, 'region' | 'addressing' | 'caFile' | 'localAddress'> {
  /** `s3://BUCKET` or `s3://BUCKET/PREFIX`. */
  readonly url: string;
  readonly endpoint?: string | undefined;
  readonly credentialsFile?: string | undefined;
}

/** Asks the server nothing yet. Rejects with STORAGE_SETTINGS_INVALID. */
export async function openS3Backend({ url, endpoint, credentialsFile, ...how }: S3Url): Promise<Backend> {
  const [, bucket = '', prefix] = /^s3:\/\/([^/]+)(?:\/(.+?))?\/?$/.exec(url) ?? [];
  if (endpoint === undefined || credentialsFile === undefined)
    throw new StorageError('STORAGE_SETTINGS_INVALID', `${url} needs endpoint and credentialsFile`);
  const credentials = await readS3Credentials(credentialsFile);
  return S3Backend.open({ ...how, endpoint, bucket, prefix, credentials });
}
