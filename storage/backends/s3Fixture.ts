import type { WeakS3 } from '../../test/sim/weakS3.ts';
import { keepSecret } from '../../test/secrets.ts';
import { S3Backend } from './s3Backend.ts';
import type { S3Limits, S3Settings } from './s3Settings.ts';

/** What the tests of the S3 backend share. */
export const testCredentials = {
  accessKeyId: 'KEYID',
  secretAccessKey: keepSecret('S3 secret', 'hidden+secret/of+ours'),
};

/** Impatient, with parts that are small enough to have many. */
export const testLimits: Partial<S3Limits> = {
  pauseMs: 1,
  pauseMsMax: 20,
  silenceMs: 5000,
  callMs: 20_000,
  // Those who inject faults do it from the beginning.
  firstContactAttemptsMax: 10,
  multipartBytes: 64 * 1024,
  partBytes: 16 * 1024,
  pageNames: 3,
};

export async function openTestBackend(server: WeakS3, change: Partial<S3Settings> = {}): Promise<S3Backend> {
  const { limits, ...settings } = change;
  return S3Backend.open({
    endpoint: server.endpoint,
    bucket: server.bucketName,
    prefix: 'backups/of-us',
    credentials: testCredentials,
    limits: { ...testLimits, ...limits },
    ...settings,
  });
}
